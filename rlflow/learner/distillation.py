"""Distillation on a rank: the teacher scores a step's tokens, then the student trains on what it said."""

from collections.abc import Mapping
from dataclasses import replace

from rlflow.algorithms.batch_plan import StepPlan
from rlflow.algorithms.distillation import DistillationObjective, WholeVocabularyJsd
from rlflow.learner.roles import Roles
from rlflow.learner.sequences import TrainSequence


def distill(
    roles: Roles,
    step: StepPlan,
    sequences: Mapping[int, TrainSequence],
    objective: DistillationObjective,
    learning_rate: float,
) -> dict[str, float]:
    """One optimiser step of the policy towards the teacher (collective). Metrics, equal on every rank."""
    teacher = roles.hold("teacher")
    known = teacher.ask_teacher(step, sequences)
    policy = roles.hold("policy")
    if isinstance(objective, WholeVocabularyJsd):
        objective = replace(objective, teacher_weight_UG=teacher.teacher_head.to(policy.device))
    return policy.train_step(step, sequences, objective, learning_rate=learning_rate, known=known)
