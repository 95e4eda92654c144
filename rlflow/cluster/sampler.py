"""Sampling and scoring a batch of prompts: groups are scored while others are still being generated."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ray import ObjectRef
from ray.exceptions import RayActorError, RayTaskError

from rlflow.actors.reward import PromptRow
from rlflow.algorithms.policy_batch import ScoredGroup
from rlflow.cluster.failure import RolloutsLost
from rlflow.cluster.ledger import PromptLedger
from rlflow.cluster.reward_group import RewardGroup
from rlflow.cluster.rollout_group import RolloutGroup, RolloutWorker
from rlflow.errors import EngineDied, RolloutError
from rlflow.rollout.completions import GroupRequest, GroupSummary


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
        """Sample and score all requests. `recover` starts and syncs engines when none is left; the ledger then goes on."""
        begin = time.perf_counter()
        ledger = PromptLedger(requests, self._assignment(requests) if self._deterministic else None)
        scoring: list[asyncio.Task[SampledGroup]] = []
        try:
            while not ledger.is_done:
                if not self._rollouts.workers:
                    await recover()
                await self._serve_all(ledger, row_of, scoring)
            generated = time.perf_counter()
            groups = await asyncio.gather(*scoring)
        except BaseException:
            for task in scoring:
                task.cancel()
            raise
        end = time.perf_counter()
        groups.sort(key=lambda group: (group.summary.prompt_id, group.summary.slot))
        return SampledBatch(groups, generated - begin, end - generated)

    async def texts(self, groups: Sequence[SampledGroup]) -> list[list[str]]:
        """The completions' texts, by group."""
        return list(await asyncio.gather(*(group.texts for group in groups)))

    async def _serve_all(
        self,
        ledger: PromptLedger[GroupRequest],
        row_of: Callable[[int], PromptRow],
        scoring: list[asyncio.Task[SampledGroup]],
    ) -> None:
        """Run until all prompts are done or no worker is left."""
        workers = list(self._rollouts.workers)
        tasks = [
            asyncio.create_task(self._serve(worker, ledger, row_of, scoring))
            for worker in workers
            for _ in range(self._groups_in_flight)
        ]
        try:
            await asyncio.gather(*tasks)
        except RolloutsLost:
            pass  # the caller starts engines and goes on
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for worker in workers:  # a task that waited for a lease may have got one back from a dead worker's other tasks
            await ledger.give_back(worker.name)

    async def _serve(
        self,
        worker: RolloutWorker,
        ledger: PromptLedger[GroupRequest],
        row_of: Callable[[int], PromptRow],
        scoring: list[asyncio.Task[SampledGroup]],
    ) -> None:
        while (request := await ledger.lease(worker.name)) is not None:
            summary_ref, arrays = worker.generate(request)
            try:
                summary = await summary_ref
            except (RayActorError, EngineDied) as error:
                await self._lose(worker, ledger, error)
                return
            except RayTaskError as error:
                raise RolloutError(f"prompt {request.prompt_id}: {_last_line(error)}") from error
            if not await ledger.finish(request.slot, worker.name):
                return
            scoring.append(asyncio.create_task(self._score(summary, arrays, row_of(request.prompt_id))))

    async def _lose(self, worker: RolloutWorker, ledger: PromptLedger[GroupRequest], error: Exception) -> None:
        self._rollouts.mark_dead(worker, error)
        await ledger.give_back(worker.name)
        if not self._rollouts.workers:
            raise RolloutsLost("no rollout worker is left") from error

    async def _score(self, summary: GroupSummary, arrays: ObjectRef, row: PromptRow) -> SampledGroup:
        scores, texts = await self._rewards.score(row, arrays)
        return SampledGroup(summary, scores, arrays, texts)

    def _assignment(self, requests: Sequence[GroupRequest]) -> Callable[[GroupRequest], str]:
        names = [worker.name for worker in self._rollouts.workers]
        assigned = {request.slot: names[i % len(names)] for i, request in enumerate(requests)}
        return lambda request: assigned[request.slot]


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
