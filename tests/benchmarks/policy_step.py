"""A learner alone on an on-policy batch: what a step takes with its memory kept, given back before, and after its states moved.

usage: python tests/benchmarks/policy_step.py --tokenizer DIR [--shape qwen3-0.6b] [--rows 256] [--length 553] [--out FILE]
resident: nothing moves; logits twice: as if the loss's derivatives were not known beforehand; cache emptied: torch's memory is
given back to the GPU before each step; at once, late: the states left the device and come back, the optimiser's part before the
step or beside its passes (`back_s`: the time of the move).
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from common import free_port, random_model, report

WARM_UP, TIMED = 2, 5


def main() -> None:
    """All ways in one process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="qwen3-0.6b")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--length", type=int, default=553)
    parser.add_argument("--micro-batch-tokens", type=int, default=32768)
    parser.add_argument("--checkpointing", default="full")
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/rlflow-benchmarks"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    learner, train = build(arguments)

    def back_at_once() -> None:
        learner.move("full")
        learner._mover.arrive()

    ways: dict[str, tuple[Callable[[], None], Callable[[], None], bool]] = {
        "resident": (nothing, nothing, True),
        "logits twice": (nothing, nothing, False),
        "cache emptied": (empty_cache, nothing, True),
        "at once": (lambda: away(learner), back_at_once, True),
        "late": (lambda: away(learner), lambda: learner.move("full"), True),
    }
    results = []
    for way, (before, back, knows_slopes) in ways.items():
        results.append({"way": way, **measure(before, back, lambda knows=knows_slopes: train(knows))})
        print(results[-1], flush=True)
    report(f"a policy step of {arguments.rows} x {arguments.length} tokens, {arguments.shape}", results, arguments.out)


def build(arguments: argparse.Namespace) -> tuple[Any, Callable[[bool], None]]:
    """The learner, and its step with or without derivatives that are known beforehand."""
    import numpy as np
    import torch

    from rlflow.algorithms.batch_plan import plan_step
    from rlflow.algorithms.losses import PolicyLoss
    from rlflow.learner.learner import Learner
    from rlflow.learner.process_group import RankInfo
    from rlflow.learner.sequences import TrainSequence
    from rlflow.spec.learner import LearnerSpec
    from rlflow.spec.model import ModelSpec

    shape = Path(arguments.shape).name.removesuffix(".json")
    path = random_model(arguments.shape, arguments.tokenizer, arguments.scratch / shape)
    budget = arguments.micro_batch_tokens
    spec = LearnerSpec(zero_stage=1, micro_batch_tokens=budget, gradient_checkpointing=arguments.checkpointing)
    model = ModelSpec(path=path, dtype="bfloat16" if torch.cuda.is_available() else "float32")
    learner = Learner(path, model, spec, RankInfo(0, 1, "127.0.0.1", free_port()))
    rows, length, generator = range(arguments.rows), arguments.length, np.random.default_rng(0)
    sequences = {
        i: TrainSequence(generator.integers(1000, 40000, length), np.ones(length, np.float32), advantage=i % 2 - 0.5)
        for i in rows
    }
    weights = dict.fromkeys(rows, 1 / (length * arguments.rows))
    step = plan_step(list(rows), [length] * len(rows), weights, num_ranks=1, micro_batch_tokens=budget, packing=True)
    loss = PolicyLoss()

    def train(knows_slopes: bool) -> None:
        objective = loss if knows_slopes else loss.__call__  # a bound method has no slopes
        learner.train_step(step, sequences, objective, learning_rate=1e-6)

    return learner, train


def measure(before: Callable[[], None], back: Callable[[], None], train: Callable[[], None]) -> dict[str, float]:
    """Medians of the seconds of `back` and `train`, and the least and the most of `train`."""
    moves, steps = [], []
    for _ in range(WARM_UP + TIMED):
        before()
        moves.append(timed(back))
        steps.append(timed(train))
    moves, steps = moves[WARM_UP:], steps[WARM_UP:]
    return {"back_s": statistics.median(moves), "step_s": statistics.median(steps), "fastest": min(steps), "slowest": max(steps)}


def timed(work: Callable[[], None]) -> float:
    """Seconds of all of it, on the GPU too."""
    synchronize()
    begin = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - begin


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def away(learner: Any) -> None:
    """The states leave the device, as for an engine's turn."""
    learner.move("weights")
    learner.move("offloaded")


def empty_cache() -> None:
    """Give memory that is not in use back to the GPU."""
    import torch

    torch.cuda.empty_cache()


def nothing() -> None:
    """Nothing moves."""


if __name__ == "__main__":
    main()
