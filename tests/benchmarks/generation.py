"""Generation throughput of one engine: the same requests straight to vLLM, and through rlflow's rollout engine.

usage: python tests/benchmarks/generation.py --tokenizer DIR [--shape qwen3-0.6b] [--ways vllm rlflow] [--out FILE]
"""

import asyncio
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from common import random_model, report, run_part, shape_parser, write_profile

WARM_UP, TIMED = 1, 3
PROMPT_TOKENS = 64
PROFILED_STEPS = 30


def main() -> None:
    """Each way in a process of its own."""
    parser = shape_parser(__doc__, "qwen3-0.6b")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--completions", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--ways", nargs="+", default=["vllm", "rlflow"], help="vllm, vllm-process or rlflow, each with :NAME")
    parser.add_argument("--engine", nargs="*", default=[], help="NAME=JSON: engine arguments of the ways with :NAME")
    parser.add_argument(
        "--logprobs-every", type=int, default=0, help="every so many groups ask for log-probabilities, as those of a job do"
    )
    parser.add_argument("--profile", type=Path, help="write where the time of steps of `vllm` goes")
    parser.add_argument("--part", help="internal: run one part here")
    arguments = parser.parse_args()
    engines = dict(pair.split("=", 1) for pair in arguments.engine)
    if arguments.part:
        way, _, name = arguments.part.partition(":")
        model = random_model(
            arguments.shape, arguments.tokenizer, arguments.scratch / Path(arguments.shape).name.removesuffix(".json")
        )
        options = {"max_num_seqs": 256, "gpu_memory_utilization": 0.5, **json.loads(engines.get(name, "{}"))}
        part = run_rlflow if way == "rlflow" else run_vllm
        if way == "vllm":
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        print(json.dumps(part(arguments, model, options)))
        return
    shared = ["--shape", arguments.shape, "--tokenizer", arguments.tokenizer, "--scratch", str(arguments.scratch)]
    for name in ("prompts", "completions", "tokens", "logprobs_every"):
        shared += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    shared += ["--profile", str(arguments.profile)] if arguments.profile else []
    results = []
    for way in arguments.ways:
        begin = time.perf_counter()
        figures = run_part(__file__, [*shared, "--part", way, *(["--engine", *arguments.engine] if arguments.engine else [])])
        results.append({"way": way, **figures, "whole_s": time.perf_counter() - begin})
        print(results[-1], flush=True)
    report(f"generation, {arguments.shape}", results, arguments.out)


def prompts(arguments: Any) -> list[list[int]]:
    """The same prompts for everyone."""
    import numpy as np

    return np.random.default_rng(0).integers(1000, 40000, (arguments.prompts, PROMPT_TOKENS)).tolist()


def run_vllm(arguments: Any, model: str, options: dict[str, Any]) -> dict[str, float]:
    """vLLM's own LLM class, without detokenisation."""
    from vllm import LLM, SamplingParams

    begin = time.perf_counter()
    engine = LLM(model, dtype="bfloat16", load_format="dummy", max_model_len=PROMPT_TOKENS + arguments.tokens, **options)
    start = time.perf_counter() - begin
    requests: Any = [{"prompt_token_ids": ids} for ids in prompts(arguments)]
    sampling = [
        SamplingParams(
            n=arguments.completions,
            max_tokens=arguments.tokens,
            ignore_eos=True,
            detokenize=False,
            logprobs=0 if _asks(arguments, i) else None,
            flat_logprobs=True,
        )
        for i in range(len(requests))
    ]
    rates = []
    for _ in range(WARM_UP + TIMED):
        begin = time.perf_counter()
        outputs = engine.generate(requests, sampling, use_tqdm=False)
        engine.reset_prefix_cache()
        rates.append(sum(len(c.token_ids) for o in outputs for c in o.outputs) / (time.perf_counter() - begin))
    if arguments.profile and arguments.part == "vllm":
        _profile_steps(engine.llm_engine, requests, sampling, arguments.profile)
    return _figures(start, rates)


def _profile_steps(engine: Any, requests: list[Any], sampling: list[Any], file: Path) -> None:
    """Steps in the middle of a batch, after the first hundred."""

    def steps() -> None:
        for _ in range(PROFILED_STEPS):
            engine.step()

    for number, request in enumerate(requests):
        engine.add_request(str(number), request, sampling[number])
    for _ in range(4):
        steps()
    begin = time.perf_counter()
    steps()
    print(f"{1000 * (time.perf_counter() - begin) / PROFILED_STEPS:.2f} ms a step without the profiler", file=sys.stderr)
    write_profile(steps, file)
    while engine.has_unfinished_requests():
        engine.step()


def run_rlflow(arguments: Any, model: str, options: dict[str, Any]) -> dict[str, float]:
    """The rollout engine, as its actor drives it."""
    return asyncio.run(_run_rlflow(arguments, model, options))


async def _run_rlflow(arguments: Any, model: str, options: dict[str, Any]) -> dict[str, float]:
    import numpy as np

    from rlflow.rollout.completions import GroupRequest
    from rlflow.rollout.engine import RolloutEngine
    from rlflow.spec.rollout import RolloutSpec

    own = {name: options.pop(name) for name in ("max_num_seqs", "gpu_memory_utilization")}
    spec = RolloutSpec(max_completion_tokens=arguments.tokens, num_generations=arguments.completions, engine=options, **own)
    begin = time.perf_counter()
    engine = await RolloutEngine.start(model, spec, dtype="bfloat16", max_model_tokens=PROMPT_TOKENS + arguments.tokens, seed=0)
    start = time.perf_counter() - begin
    engine.weight_version = 1  # dummy weights will do here
    requests = [
        GroupRequest(i, i, np.array(ids, np.int32), arguments.completions, with_logprobs=_asks(arguments, i))
        for i, ids in enumerate(prompts(arguments))
    ]
    rates = []
    for _ in range(WARM_UP + TIMED):
        begin = time.perf_counter()
        groups = await asyncio.gather(*(engine.generate(request) for request in requests))
        await engine._engine.call(lambda vllm: vllm.reset_prefix_cache())
        rates.append(sum(len(c.token_ids) for g in groups for c in g.completions) / (time.perf_counter() - begin))
    await engine.close()
    return _figures(start, rates)


def _asks(arguments: Any, number: int) -> bool:
    return arguments.logprobs_every > 0 and number % arguments.logprobs_every == 0


def _figures(start: float, rates: list[float]) -> dict[str, float]:
    timed = rates[WARM_UP:]
    return {"start_s": start, "tokens_per_s": statistics.median(timed), "slowest": min(timed), "fastest": max(timed)}


if __name__ == "__main__":
    main()
