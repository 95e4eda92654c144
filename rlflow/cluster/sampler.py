"""Sampling and scoring a batch of prompts: groups are scored while others are still being generated."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ray import ObjectRef

from rlflow.actors.reward_samples import PromptRow
from rlflow.algorithms.policy_batch import ScoredGroup
from rlflow.cluster.dispatch import Dispatch
from rlflow.cluster.failure import unless_lost
from rlflow.cluster.ledger import PromptLedger
from rlflow.cluster.reward_group import RewardGroup
from rlflow.cluster.rollout_group import RolloutGroup
from rlflow.errors import GroupLost, RolloutError
from rlflow.rollout.completions import MOST_ATTEMPTS, GroupRequest, GroupSummary

logger = logging.getLogger("rlflow")
LOST_TEXT = "(lost with a node)"


@dataclass(frozen=True, slots=True)
class SampledGroup:
    """A group as the controller knows it: scalars, and references to the rest."""

    summary: GroupSummary
    scores: list[Any]
    """A `SampleScore` for each completion."""
    arrays: ObjectRef
    texts: ObjectRef

    def scored(self) -> ScoredGroup:
        """The scalars that training needs."""
        return ScoredGroup(
            prompt_id=self.summary.prompt_id,
            prompt_tokens=self.summary.prompt_tokens,
            completion_tokens=self.summary.completion_tokens,
            is_truncated=tuple(reason == "length" for reason in self.summary.finish_reasons),
            rewards=tuple(score.total for score in self.scores),
            reward_parts=tuple(tuple(score.by_name.values()) for score in self.scores),
        )


@dataclass(frozen=True, slots=True)
class SampledBatch:
    """All groups of a batch, in the order of prompt ids, and how long the tail of scoring took."""

    groups: list[SampledGroup]
    generate_seconds: float
    reward_seconds: float
    """Time spent waiting for rewards after the last group was generated."""


class Sampler:
    """Feeds prompts to the rollout workers through a ledger, and finished groups to the reward workers."""

    def __init__(self, rollouts: RolloutGroup, rewards: RewardGroup, *, groups_in_flight: int, deterministic: bool) -> None:
        self._rollouts, self._rewards = rollouts, rewards
        self._groups_in_flight = groups_in_flight
        self._deterministic = deterministic

    async def sample(
        self,
        requests: Sequence[GroupRequest],
        row_of: Callable[[int], PromptRow],
        recover: Callable[[], Awaitable[None]],
    ) -> SampledBatch:
        """Sample and score all requests; groups that are lost with a node are sampled again. `recover` starts and syncs engines
        when none is left; the ledger then goes on.
        """
        begin = time.perf_counter()
        groups: list[SampledGroup] = []
        generated, waiting = begin, requests
        while waiting:
            scoring: list[asyncio.Task[SampledGroup | GroupRequest]] = []
            try:
                await self._generate(waiting, scoring, row_of, recover)
                generated = time.perf_counter()
                found = await asyncio.gather(*scoring)
            except BaseException:
                for task in scoring:
                    task.cancel()
                raise
            groups += [group for group in found if isinstance(group, SampledGroup)]
            waiting = [request for request in found if isinstance(request, GroupRequest)]
            if waiting:
                logger.warning(f"{len(waiting)} groups were lost with a node; they are sampled again")
        groups.sort(key=lambda group: (group.summary.prompt_id, group.summary.slot))
        return SampledBatch(groups, generated - begin, time.perf_counter() - generated)

    async def _generate(
        self,
        requests: Sequence[GroupRequest],
        scoring: list[asyncio.Task[SampledGroup | GroupRequest]],
        row_of: Callable[[int], PromptRow],
        recover: Callable[[], Awaitable[None]],
    ) -> None:
        """Sample all requests; what becomes of each group is appended to `scoring`."""
        ledger = PromptLedger(requests, self._assignment(requests) if self._deterministic else None)

        async def ask(request: GroupRequest) -> GroupRequest:
            return request

        def score(request: GroupRequest, summary: GroupSummary, arrays: ObjectRef) -> None:
            scoring.append(asyncio.create_task(self._score(request, summary, arrays, row_of(request.prompt_id))))

        dispatch = Dispatch(self._rollouts, groups_in_flight=self._groups_in_flight, ask=ask, deliver=score, refuse=_refuse)
        await dispatch.run(ledger, recover)

    async def texts(self, groups: Sequence[SampledGroup]) -> list[list[str]]:
        """The completions' texts, by group; `LOST_TEXT` where they are gone with a node."""

        async def read(group: SampledGroup) -> list[str]:
            try:
                return await unless_lost(group.texts)
            except GroupLost as error:
                logger.warning(f"the texts of prompt {group.summary.prompt_id} are lost: {error}")
                return [LOST_TEXT] * len(group.scores)

        return list(await asyncio.gather(*map(read, groups)))

    async def _score(
        self, request: GroupRequest, summary: GroupSummary, arrays: ObjectRef, row: PromptRow
    ) -> SampledGroup | GroupRequest:
        """The scored group, or what is to be sampled again."""
        try:
            scores, texts = await self._rewards.score(row, arrays)
        except GroupLost as error:
            if request.attempt + 1 == MOST_ATTEMPTS:
                raise RolloutError(f"prompt {request.prompt_id}: its group was lost {MOST_ATTEMPTS} times: {error}") from error
            return replace(request, attempt=request.attempt + 1)
        return SampledGroup(summary, scores, arrays, texts)

    def _assignment(self, requests: Sequence[GroupRequest]) -> Callable[[GroupRequest], str]:
        names = [worker.name for worker in self._rollouts.workers]
        assigned = {request.slot: names[i % len(names)] for i, request in enumerate(requests)}
        return lambda request: assigned[request.slot]


def _refuse(request: GroupRequest, reason: str) -> None:
    raise RolloutError(f"prompt {request.prompt_id}: {reason}")
