"""Tokenised conversations as a loop sees them: their lengths, and the plan of an optimiser step on some of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from rlflow.algorithms.batch_plan import StepPlan, plan_step
from rlflow.spec.learner import LearnerSpec


@dataclass(frozen=True, slots=True)
class ConversationLengths:
    """What the controller knows of tokenised conversations."""

    tokens: Sequence[int]
    """Length of each."""
    loss_weights: Sequence[float]
    """Sum of each one's loss weights."""


def plan_conversations(lengths: ConversationLengths, rows: Sequence[int], spec: LearnerSpec) -> StepPlan:
    """Every token's loss is weighted by its own weight over the sum of the step's: a token mean over all ranks."""
    total = sum(lengths.loss_weights[row] for row in rows)
    weight = 1.0 / total if total else 0.0
    return plan_step(
        range(len(rows)),
        [lengths.tokens[row] for row in rows],
        dict.fromkeys(range(len(rows)), weight),
        num_ranks=spec.num_ranks,
        micro_batch_tokens=spec.micro_batch_tokens,
        packing=spec.packing,
        sequence_parallel=spec.sequence_parallel,
    )
