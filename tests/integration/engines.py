"""Real engines in processes of their own: learner ranks and one vLLM engine, and tiny models for both."""

import asyncio
import inspect
import multiprocessing
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

START_TIMEOUT_S = 120.0
TASK_TIMEOUT_S = 120.0
_CLOSE_TIMEOUT_S = 30.0
_REAP_TIMEOUT_S = 5.0

STOP_TOKEN = 1
_START_METHOD = "spawn" if Path("/dev/nvidiactl").exists() else "forkserver"
"""A process that has looked at a GPU cannot be forked."""


def save_tiny_model(directory: Path, *, tied: bool, vocabulary: int = 60, experts: int = 0) -> str:
    """Write a Qwen3 of two layers with grouped-query attention and no tokenizer, and return its directory.

    With `experts`, its feed-forward parts are mixtures of that many, two of which see a token.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    mixture = {"num_experts": experts, "num_experts_per_tok": 2, "moe_intermediate_size": 32} if experts else {}
    config = AutoConfig.for_model(
        "qwen3_moe" if experts else "qwen3",
        vocab_size=vocabulary,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=128,
        tie_word_embeddings=tied,
        initializer_range=0.1,
        eos_token_id=STOP_TOKEN,
        pad_token_id=2,
        bos_token_id=None,
        **mixture,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return str(directory)


class RemoteError(Exception):
    """A function raised in another process; the text is its traceback."""


class Worker:
    """A process that runs the functions it is sent, each with the context it opened at its start.

    It ends with the test process, however that ends: its pipe is then closed.
    """

    def __init__(self, open_context: Callable[..., Any], *arguments: Any) -> None:
        server = multiprocessing.get_context(_START_METHOD)
        if _START_METHOD == "forkserver":
            server.set_forkserver_preload(["tests.integration.preloaded"])
        self._pipe, theirs = server.Pipe()
        self._process = server.Process(target=_serve, args=(theirs, open_context, arguments))
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """Of the process, which also leads a process group."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process.is_alive()

    def send(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Start `function(context, *arguments)` there."""
        self._pipe.send((function, arguments))

    def receive(self, timeout_s: float = TASK_TIMEOUT_S) -> Any:
        """What the function returned. Raises `RemoteError`, or `TimeoutError` when it takes too long."""
        if not self._pipe.poll(timeout_s):
            raise TimeoutError(f"no answer in {timeout_s:g} s")
        succeeded, value = self._pipe.recv()
        if not succeeded:
            raise RemoteError(value)
        return value

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`send` and `receive`."""
        self.send(function, *arguments)
        return self.receive()

    def close(self) -> None:
        """Close the context and end the process; kill its process group if that takes too long."""
        self._pipe.close()
        self._process.join(_CLOSE_TIMEOUT_S)
        if self._process.is_alive():
            self.kill()

    def kill(self) -> None:
        """End the process and its children at once."""
        self._pipe.close()
        os.killpg(self.pid, signal.SIGKILL)
        self._process.join()


class RankGroup:
    """Learner ranks. They start with the first call, and again with the next call after a failure or `stop`."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._workers: list[Worker] = []

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """`function(rank, *arguments)` on every rank at once, `rank` being a `learner_rank.Rank`: results by rank.

        If one fails all are killed: the others may be waiting for it.
        """
        if not self._workers:
            port = _free_port()
            self._workers = [Worker(_open_rank, r, self.world_size, port) for r in range(self.world_size)]
            self._receive(START_TIMEOUT_S)
        for worker in self._workers:
            worker.send(function, *arguments)
        return self._receive(TASK_TIMEOUT_S)

    def stop(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.close()
        self._workers = []

    def _receive(self, timeout_s: float) -> list[Any]:
        try:
            return [worker.receive(timeout_s) for worker in self._workers]
        except (RemoteError, TimeoutError, EOFError):
            for worker in self._workers:
                worker.kill()
            self._workers = []
            raise


@contextmanager
def rollout_engine(model: str, spec: Any, *, max_model_tokens: int) -> Iterator[Worker]:
    """A worker whose context is a `RolloutEngine` in float32. Afterwards nothing of it may be left."""
    worker = Worker(_open_engine, model, spec, max_model_tokens)
    try:
        worker.receive(START_TIMEOUT_S)
        processes = process_group(worker.pid)
        shared = shared_memory_of(processes)
        assert not [path for path in shared if path.name.startswith(("psm_", "vllm_"))], "a killed engine would leave it"
        yield worker
        processes |= process_group(worker.pid)
        shared |= shared_memory_of(processes)
        worker.close()
        left = wait_for_ends(processes)
        assert not left, f"processes {left} outlived their engine"
        assert not [path for path in shared if path.exists()], "shared memory outlived its engine"
    finally:
        if worker.is_alive:
            worker.kill()


def process_group(leader: int) -> set[int]:
    """All processes that a worker started, itself included."""
    return {pid for pid in _pids() if _group_of(pid) == leader}


def _serve(pipe: Any, open_context: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.setsid()
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    asyncio.run(_serve_tasks(pipe, open_context, arguments))


async def _serve_tasks(pipe: Any, open_context: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    context = await _answer(pipe, open_context, *arguments, reply=False)
    try:
        while True:
            try:
                function, arguments = await asyncio.to_thread(pipe.recv)
            except EOFError:
                return
            await _answer(pipe, function, context, *arguments)
    finally:
        closing = context.close()
        if inspect.isawaitable(closing):
            await closing


async def _answer(pipe: Any, function: Callable[..., Any], *arguments: Any, reply: bool = True) -> Any:
    try:
        value = function(*arguments)
        if inspect.isawaitable(value):
            value = await value
        pipe.send((True, value if reply else None))
        return value
    except Exception:
        pipe.send((False, traceback.format_exc()))


def _open_rank(rank: int, world_size: int, port: int) -> Any:
    if world_size > 1:
        devices = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(world_size)))
        os.environ["CUDA_VISIBLE_DEVICES"] = devices.split(",")[rank % len(devices.split(","))]  # as Ray does for its actors
    from tests.integration.learner_rank import Rank

    return Rank(rank, world_size, port)


async def _open_engine(model: str, spec: Any, max_model_tokens: int) -> Any:
    from rlflow.rollout.engine import RolloutEngine

    return await RolloutEngine.start(model, spec, dtype="float32", max_model_tokens=max_model_tokens, seed=0)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return held.getsockname()[1]


def wait_for_ends(pids: set[int]) -> list[int]:
    """Those that still exist after a while: children of a killed process are reaped by others."""
    deadline = time.monotonic() + _REAP_TIMEOUT_S
    while (left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _pids() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def shared_memory_of(pids: Iterable[int]) -> set[Path]:
    """Files in /dev/shm that the processes have mapped."""
    paths = set()
    for pid in pids:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            path = line.split(maxsplit=5)[-1]
            if path.startswith("/dev/shm/") and not path.endswith("(deleted)"):
                paths.add(Path(path))
    return paths
