"""A learner alone on an on-policy batch: what a step takes with its memory kept, given back before, and after its states moved.

usage: python tests/benchmarks/policy_step.py --tokenizer DIR [--shape qwen3-0.6b] [--rows 256] [--length 553] [--out FILE]
resident: nothing moves; logits twice: as if the loss's derivatives were not known beforehand; cache emptied: torch's memory is
given back to the GPU before each step; at once, late: the states left the device and come back, the optimiser's part before the
step or beside its passes (`back_s`: the time of the move).
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from common import lone_learner, random_model, random_rows, report, seconds_of, shape_parser

WARM_UP, TIMED = 2, 5


def main() -> None:
    """All ways in one process."""
    parser = shape_parser(__doc__, "qwen3-0.6b")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--length", type=int, default=553)
    parser.add_argument("--micro-batch-tokens", type=int, default=32768)
    parser.add_argument("--checkpointing", default="full")
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
    import torch

    from rlflow.algorithms.losses import PolicyLoss
    from rlflow.spec.learner import LearnerSpec
    from rlflow.spec.model import ModelSpec

    shape = Path(arguments.shape).name.removesuffix(".json")
    path = random_model(arguments.shape, arguments.tokenizer, arguments.scratch / shape)
    budget = arguments.micro_batch_tokens
    spec = LearnerSpec(zero_stage=1, micro_batch_tokens=budget, gradient_checkpointing=arguments.checkpointing)
    model = ModelSpec(path=path, dtype="bfloat16" if torch.cuda.is_available() else "float32")
    learner = lone_learner(model, spec)
    step, rows = random_rows(arguments.rows, arguments.length, budget)
    sequences = {i: replace(row, advantage=i % 2 - 0.5) for i, row in rows.items()}
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
        moves.append(seconds_of(back))
        steps.append(seconds_of(train))
    moves, steps = moves[WARM_UP:], steps[WARM_UP:]
    return {"back_s": statistics.median(moves), "step_s": statistics.median(steps), "fastest": min(steps), "slowest": max(steps)}


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
