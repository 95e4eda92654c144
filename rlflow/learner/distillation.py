"""Distillation on a rank: a teacher scores a step's tokens, then the student trains on what it said."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from rlflow.algorithms.batch_plan import StepPlan
from rlflow.algorithms.distillation import DistillationObjective, WholeVocabularyJsd
from rlflow.learner.learner import Learner, Scores
from rlflow.learner.roles import Roles
from rlflow.learner.sequences import TrainSequence


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a teacher says in the place of the trained tokens of sequences."""

    known: dict[str, Scores]
    """The fields of `LikeliestTokens`, or of `HiddenStates`."""
    head: Tensor | None
    """Its output head [U, G], in host memory, if it says hidden states."""


def ask(teacher: Learner, step: StepPlan, sequences: Mapping[int, TrainSequence]) -> Lesson:
    """The lesson of a step's sequences (collective)."""
    known = teacher.ask_teacher(step, sequences)
    return Lesson(known, teacher.teacher_head if "teacher_hidden" in known else None)


def learn(
    policy: Learner,
    step: StepPlan,
    sequences: Mapping[int, TrainSequence],
    objective: DistillationObjective,
    learning_rate: float,
    lesson: Lesson,
) -> dict[str, float]:
    """One optimiser step towards the teacher (collective). Metrics, equal on every rank."""
    if isinstance(objective, WholeVocabularyJsd):
        assert lesson.head is not None
        objective = replace(objective, teacher_weight_UG=lesson.head.to(policy.device))
    return policy.train_step(step, sequences, objective, learning_rate=learning_rate, known=lesson.known)


def distill(
    roles: Roles,
    step: StepPlan,
    sequences: Mapping[int, TrainSequence],
    objective: DistillationObjective,
    learning_rate: float,
) -> dict[str, float]:
    """Both, with a teacher that shares the device."""
    lesson = ask(roles.hold("teacher"), step, sequences)
    return learn(roles.hold("policy"), step, sequences, objective, learning_rate, lesson)
