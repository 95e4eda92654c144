"""The ranks of a teacher on devices of its own."""

from collections.abc import Sequence
from typing import Any

import ray
from ray import ObjectRef

from rlflow.actors.learner import LearnerSetup
from rlflow.algorithms.batch_plan import StepPlan
from rlflow.algorithms.distillation import TeacherAnswers
from rlflow.algorithms.policy_batch import PolicyBatch
from rlflow.cluster.devices import DevicePlan
from rlflow.cluster.placement import Placement
from rlflow.cluster.rank_group import RankGroup


class TeacherGroup(RankGroup):
    """Answers for the sequences of a step, which it cuts up for its own ranks; the answers stay with these."""

    def __init__(self, placement: Placement, plan: DevicePlan, setup: LearnerSetup) -> None:
        super().__init__(placement, plan.seats_of("teacher"), setup)

    async def answer_samples(self, batch: PolicyBatch, groups: Sequence[ObjectRef]) -> TeacherAnswers:
        """For sampled completions."""
        return await self._answers("answer_samples", ray.put(batch), list(groups))

    async def answer_conversations(self, step: StepPlan, rows: Sequence[int]) -> TeacherAnswers:
        """For tokenised rows."""
        return await self._answers("answer_conversations", step, list(rows))

    async def _answers(self, method: str, *arguments: Any) -> TeacherAnswers:
        ranks: list[TeacherAnswers] = await self._all(method, *arguments)
        of_sequences = {number: answer for rank in ranks for number, answer in rank.of_sequences.items()}
        return TeacherAnswers(of_sequences, ranks[0].head)
