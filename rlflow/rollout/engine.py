"""A vLLM engine: sampling, sleep and wake, and its side of a weight sync."""

import asyncio
import itertools
import os
import pickle
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import numpy as np

from rlflow.errors import EngineDied, RolloutError, WeightSyncError
from rlflow.rollout.completions import Completion, CompletionGroup, FinishReason, GroupRequest
from rlflow.rollout.engine_thread import EngineThread
from rlflow.rollout.model_settings import stop_token_ids
from rlflow.rollout.shared_memory import forget_shared_memory
from rlflow.spec.rollout import GenerationSpec, RolloutSpec
from rlflow.weights.buckets import Bucket
from rlflow.weights.buffers import BufferHandle

_RECEIVER = "rlflow.rollout.receiver.WeightReceiver"
_UNKNOWN_SHARE = 0.45
"""Of the GPU's memory, where the plan could not estimate what the engine needs."""
_SHARE_ALONE = 0.9
"""Of the GPU's memory, for an engine without a learner beside it."""
_SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty")
"""Settings of a request, else of the spec; where neither has one, the distribution is the model's."""
_SHUTDOWN_TIMEOUT_S = 10.0
_SLEEP_LEVEL = 2
"""Level 2 drops weights and KV cache; every wake is followed by a full sync."""


class RolloutEngine:
    """One vLLM engine in this process. With the model's own weights it samples at once, else only after the first weight sync.

    In the process because vLLM's engine process costs a fifth of the throughput on an H100, and seconds at the start. An engine
    over several devices has a process for each.
    """

    def __init__(self, engine: EngineThread, spec: RolloutSpec | GenerationSpec, stop_token_ids: list[int]) -> None:
        self._engine, self._spec, self._stop_token_ids = engine, spec, stop_token_ids
        self.weight_version: int | None = None
        """Version of the loaded weights; None while there are none to sample with."""
        self._request_ids = itertools.count()

    @classmethod
    async def start(
        cls,
        model_path: str,
        spec: RolloutSpec | GenerationSpec,
        *,
        dtype: str,
        max_model_tokens: int,
        seed: int,
        load_weights: bool = False,
        can_sleep: bool = False,
        num_threads: int | None = None,
    ) -> "RolloutEngine":
        """Start vLLM; takes tens of seconds. Raises `RolloutError` with what vLLM says if it does not start.

        `load_weights`: those of the model, instead of waiting for a sync; `can_sleep`: be able to free the device memory (GPUs
        only); `num_threads`: CPU threads that its processes compute with.
        """
        on_gpu = _prepare_environment(spec)
        arguments = {
            "model": model_path,
            "dtype": dtype,
            "seed": seed,
            "load_format": "auto" if load_weights else "dummy",
            "max_model_len": max_model_tokens,
            "max_num_seqs": spec.max_num_seqs,
            "tensor_parallel_size": spec.tensor_parallel_size,
            # In a placement group, vLLM would have Ray start its workers, on devices that are taken.
            "distributed_executor_backend": "mp" if spec.tensor_parallel_size > 1 else "uni",
            "gpu_memory_utilization": _memory_share(spec),
            "enforce_eager": spec.enforce_eager or not on_gpu,
            "enable_sleep_mode": can_sleep,
            "enable_prefix_caching": True,
            "logprobs_mode": _logprobs_mode(spec),
            "generation_config": "vllm",
            "worker_extension_cls": _RECEIVER,
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            # vLLM 0.32 rewinds the generator of a seeded request whose prompt it computes in parts, which only CUDA's can.
            **({} if on_gpu else {"enable_chunked_prefill": False}),
            **spec.engine,
        }
        engine = await _launched(arguments, None if num_threads is None else max(1, num_threads // spec.tensor_parallel_size))
        if spec.tensor_parallel_size > 1:
            await engine.call(lambda engine: engine.collective_rpc("rlflow_forget_shared_memory"))
            forget_shared_memory()
        started = cls(engine, spec, stop_token_ids(model_path))
        started.weight_version = 0 if load_weights else None
        return started

    # ---- sampling

    async def generate(self, request: GroupRequest) -> CompletionGroup:
        """Sample a group of completions.

        Raises `RolloutError` if the engine has no weights, refuses the prompt (it may be too long) or takes too long, and
        `EngineDied` if it ends.
        """
        if self.weight_version is None:
            raise RolloutError("the engine was asked to sample before its first weight sync")
        version = self.weight_version
        output = await self._final_output(request)
        return CompletionGroup(
            slot=request.slot,
            prompt_id=request.prompt_id,
            attempt=request.attempt,
            weight_version=version,
            prompt_ids=request.prompt_ids,
            completions=tuple(_completion(sample) for sample in sorted(output.outputs, key=lambda sample: sample.index)),
        )

    async def stream(self, request: GroupRequest) -> AsyncGenerator[tuple[list[int], FinishReason | None], None]:
        """One completion as it is sampled: the token ids of each step, and with the last ones why it ended.

        The completion is aborted if the iterator is closed or its task cancelled. Raises `RolloutError` as `generate` does.
        """
        request_id, prompt = self._next_id(request), {"prompt_token_ids": request.prompt_ids.tolist()}
        sampling = self._sampling(request, streamed=True)
        try:
            async with aclosing(self._engine.stream(request_id, prompt, sampling)) as outputs:
                async for output in outputs:
                    [sample] = output.outputs
                    yield list(sample.token_ids), sample.finish_reason
        except EngineDied:
            raise
        except Exception as error:
            raise RolloutError(f"the engine refused it: {type(error).__name__}: {error}") from error

    def _next_id(self, request: GroupRequest) -> str:
        return f"{request.prompt_id}-{next(self._request_ids)}"

    async def _final_output(self, request: GroupRequest) -> Any:
        prompt = {"prompt_token_ids": request.prompt_ids.tolist()}
        try:
            async with asyncio.timeout(self._spec.generate_timeout_s):
                return await self._engine.generate(self._next_id(request), prompt, self._sampling(request))
        except TimeoutError:
            raise RolloutError(
                f"prompt {request.prompt_id} took longer than rollout.generate_timeout_s = {self._spec.generate_timeout_s:g} s"
            ) from None
        except EngineDied:
            raise
        except Exception as error:
            message = f"prompt {request.prompt_id} was refused by the engine: {type(error).__name__}: {error}"
            raise RolloutError(message) from error

    def _sampling(self, request: GroupRequest, *, streamed: bool = False) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        spec = self._spec
        chosen: dict[str, Any] = {name: _first_set(getattr(request, name), getattr(spec, name, None)) for name in _SAMPLING}
        if request.full_distribution:
            chosen["top_p"] = chosen["top_k"] = None
        return SamplingParams(
            **{name: value for name, value in chosen.items() if value is not None},
            n=request.num_completions,
            max_tokens=spec.max_completion_tokens if request.max_tokens is None else request.max_tokens,
            seed=request.seed,
            stop=list(spec.stop) or None,
            stop_token_ids=self._stop_token_ids,
            include_stop_str_in_output=True,
            logprobs=0 if request.with_logprobs else None,
            flat_logprobs=True,  # lists of numbers; else a dictionary of objects for every token
            detokenize=bool(spec.stop),
            output_kind=RequestOutputKind.DELTA if streamed else RequestOutputKind.FINAL_ONLY,
        )

    # ---- residency

    async def sleep(self) -> None:
        """Free the device memory of weights and KV cache."""
        self.weight_version = None
        await self._engine.call(lambda engine: engine.sleep(_SLEEP_LEVEL))

    async def wake_weights(self) -> None:
        """Take memory for the weights; they are garbage until the next sync."""
        await self._engine.call(lambda engine: engine.wake_up(["weights"]))

    async def wake_cache(self) -> None:
        """Take memory for the KV cache."""
        await self._engine.call(lambda engine: engine.wake_up(["kv_cache"]))

    # ---- weight sync

    async def begin_update(self) -> None:
        """The weights are about to change; nothing may be sampling."""
        self.weight_version = None
        await self._update_rpc("rlflow_begin_update")

    async def load_bucket(self, handles: dict[str, BufferHandle], bucket: Bucket) -> None:
        """Read a bucket from the learner's memory on each worker's own device."""
        await self._update_rpc("rlflow_load_bucket", pickle.dumps((handles, bucket)))

    async def finish_update(self, version: int) -> None:
        """All buckets have been sent: finish loading, and forget prefixes cached under older weights."""
        await self._update_rpc("rlflow_finish_update")
        if not await self._engine.call(lambda engine: engine.reset_prefix_cache()):
            raise WeightSyncError("the prefix cache could not be reset: requests were running during a weight sync")
        self.weight_version = version

    async def _update_rpc(self, method: str, *arguments: bytes) -> None:
        try:
            await self._engine.call(lambda engine: engine.collective_rpc(method, args=arguments))
        except Exception as error:  # whatever went wrong in a worker, the weights are now unusable
            raise WeightSyncError(f"{method} failed in the rollout engine: {error}") from error

    async def check(self) -> None:
        """Raises `EngineDied` if the engine has."""
        await self._engine.call(lambda engine: None)

    async def close(self) -> None:
        """Stop the engine, and its processes if it has any."""
        await self._engine.close(_SHUTDOWN_TIMEOUT_S)


async def _launched(arguments: dict[str, Any], num_threads: int | None) -> EngineThread:
    """vLLM, each of whose processes computes with so many CPU threads. Raises `RolloutError` if it does not start."""
    if num_threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(num_threads)  # of the processes of an engine over several devices

    def create() -> Any:
        import torch
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        if num_threads is not None:
            torch.set_num_threads(num_threads)  # of this thread, which computes
        return LLMEngine.from_engine_args(EngineArgs(**arguments))

    engine = EngineThread(create)
    try:
        await engine.started()
    except Exception as error:
        said = " ".join(str(error).split())
        raise RolloutError(f"vLLM did not start: {type(error).__name__}: {said}") from error
    return engine


def _prepare_environment(spec: RolloutSpec | GenerationSpec) -> bool:
    """Settings vLLM reads from the environment. Returns whether there is a GPU."""
    import torch

    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(spec.cpu_kv_cache_gib))
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.setdefault("VLLM_CPU_CI_ENV", "1")
        # The engine is eager here, and yet the first request for log-probabilities would compile a kernel (5 to 20 s).
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"  # which vLLM would come to by itself, with a warning
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    return on_gpu


def _first_set(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _logprobs_mode(spec: RolloutSpec | GenerationSpec) -> str:
    """Log-probabilities under the distribution sampled from. Of the full distribution at temperature 1 those are the raw ones,
    which cost nothing while no request asks for them.
    """
    processed = isinstance(spec, RolloutSpec) and not (spec.temperature == 1.0 and spec.samples_model_distribution)
    return "processed_logprobs" if processed else "raw_logprobs"


def _memory_share(spec: RolloutSpec | GenerationSpec) -> float:
    if spec.gpu_memory_utilization != "auto":
        return spec.gpu_memory_utilization
    return _UNKNOWN_SHARE if isinstance(spec, RolloutSpec) else _SHARE_ALONE


def _completion(sample: Any) -> Completion:
    token_ids = np.asarray(sample.token_ids, dtype=np.int32)
    logprobs = None
    if sample.logprobs is not None:
        flat = sample.logprobs
        logprobs = np.asarray(flat.logprobs, dtype=np.float32)[flat.start_indices]  # the sampled token is each position's first
        if len(logprobs) != len(token_ids) or np.isnan(logprobs).any():
            raise RolloutError("the engine's log-probabilities are not numbers: its weights are broken")
    return Completion(token_ids, logprobs, sample.finish_reason)
