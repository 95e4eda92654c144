"""Distillation on a rank: the teacher scores a step's tokens, then the student trains on what it said."""

from collections.abc import Mapping

from rlflow.algorithms.batch_plan import StepPlan
from rlflow.algorithms.distillation import GeneralizedJsd
from rlflow.learner.roles import Roles
from rlflow.learner.sequences import TrainSequence


def distill(
    roles: Roles, step: StepPlan, sequences: Mapping[int, TrainSequence], objective: GeneralizedJsd, learning_rate: float
) -> dict[str, float]:
    """One optimiser step of the policy towards the teacher (collective). Metrics, equal on every rank."""
    tokens, logprobs = roles.hold("teacher").likeliest_tokens(step, sequences)
    known = {"candidates": tokens, "teacher_logprobs": logprobs}
    return roles.hold("policy").train_step(step, sequences, objective, learning_rate=learning_rate, known=known)
