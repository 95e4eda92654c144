"""The reward workers as one object."""

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import RayActorError

from rlflow.actors.reward import RewardActor, RewardSetup
from rlflow.actors.reward_samples import PromptRow
from rlflow.cluster.devices import DevicePlan
from rlflow.cluster.failure import unless_lost
from rlflow.cluster.judges import JudgeGroup
from rlflow.cluster.placement import Placement


@dataclass(frozen=True, slots=True, eq=False)
class _Worker:
    setup: RewardSetup
    actor: Any


class RewardGroup:
    """Hands groups to reward workers in turn. Ray restarts a dead worker and scores its groups again.

    Groups that miss a judge's answer because its engine died are scored again too, once that is back; if it is elsewhere then,
    the workers that ask it are replaced.
    """

    def __init__(self, placement: Placement, plan: DevicePlan, setup: RewardSetup, *, max_restarts: int) -> None:
        self._placement, self._seats = placement, plan.seats_of("reward")
        self._options = {"max_restarts": max_restarts, "max_task_retries": max_restarts}
        self._judges = JudgeGroup(placement, plan, setup, max_restarts=max_restarts)
        self._replacing = asyncio.Lock()
        self._workers: dict[int, _Worker] = {}
        self._turn: Iterator[_Worker] = iter(())
        if not plan.seats_of("judge"):
            self._start_workers()
        self.holds_devices = any(seat.devices for seat in self._seats)
        """Whether models of rewards lie on devices."""

    def _start_workers(self) -> None:
        """In every seat one that knows where its judges are."""
        for seat in self._seats:
            setup, old = self._judges.setup_for(seat.index), self._workers.get(seat.index)
            if old is None or old.setup != setup:
                if old is not None:
                    ray.kill(old.actor)
                self._workers[seat.index] = _Worker(setup, self._placement.start(RewardActor, seat, setup, **self._options))
        self._turn = itertools.cycle(self._workers.values())

    async def ready(self) -> None:
        """Wait until all workers are up, and before them the engines of judges."""
        await self._judges.start_missing()
        self._start_workers()
        await asyncio.gather(*(worker.actor.ready.remote() for worker in self._workers.values()))

    async def score(self, row: PromptRow, group: ObjectRef) -> tuple[list[Any], ObjectRef]:
        """Scores of a group, and a reference to its texts. Raises `GroupLost`, and `RolloutError` if judges died too often."""
        while True:
            worker, known_starts = next(self._turn), self._judges.num_starts
            reference, texts = worker.actor.score.remote(row, group)
            try:
                scores = await unless_lost(reference)
            except RayActorError:
                if worker in self._workers.values():
                    raise
                continue  # it was replaced
            if not any(score.failures for score in scores) or not await self._replaced_judges(known_starts):
                return scores, texts

    async def _replaced_judges(self, known_starts: int) -> bool:
        """Whether engines of judges have died since so many had been started; there are new ones then."""
        async with self._replacing:
            if self._judges.num_starts == known_starts:
                if not await self._judges.mark_dead():
                    return False
                await self.ready()
            return True

    async def close(self) -> None:
        """Stop the plugin processes and the engines of judges, and end the actors."""
        closing = (worker.actor.close.remote() for worker in self._workers.values())
        await asyncio.gather(*closing, return_exceptions=True)
        self._judges.close()
        for worker in self._workers.values():
            ray.kill(worker.actor)
