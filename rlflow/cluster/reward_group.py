"""The reward workers as one object."""

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray import ObjectRef

from rlflow.actors.reward import RewardActor, RewardSetup
from rlflow.actors.reward_samples import PromptRow
from rlflow.cluster.devices import DevicePlan
from rlflow.cluster.failure import unless_lost
from rlflow.cluster.judges import JudgeGroup
from rlflow.cluster.placement import Placement


class RewardGroup:
    """Hands groups to reward workers in turn. Ray restarts a dead worker and scores its groups again."""

    def __init__(self, placement: Placement, plan: DevicePlan, setup: RewardSetup, *, max_restarts: int) -> None:
        self._placement, self._seats, self._setup = placement, plan.seats_of("reward"), setup
        self._options = {"max_restarts": max_restarts, "max_task_retries": max_restarts}
        self._judges = JudgeGroup(placement, plan)
        self._workers: list[Any] = []
        self._turn: Iterator[Any] = iter(())
        if not plan.seats_of("judge"):
            self._start([setup])
        self.holds_devices = any(seat.devices for seat in plan.seats_of("reward"))
        """Whether models of rewards lie on devices."""

    def _start(self, setups: Sequence[RewardSetup]) -> None:
        self._workers = [
            self._placement.start(RewardActor, seat, setup, **self._options)
            for seat, setup in zip(self._seats, itertools.cycle(setups), strict=False)
        ]
        self._turn = itertools.cycle(self._workers)

    async def ready(self) -> None:
        """Wait until all workers are up, and before them the engines of judges."""
        if not self._workers:
            self._start(await self._judges.start(self._setup))
        await asyncio.gather(*(worker.ready.remote() for worker in self._workers))

    async def score(self, row: PromptRow, group: ObjectRef) -> tuple[list[Any], ObjectRef]:
        """Scores of a group, and a reference to its texts. Raises `GroupLost`."""
        scores, texts = next(self._turn).score.remote(row, group)
        return await unless_lost(scores), texts

    async def close(self) -> None:
        """Stop the plugin processes and the engines of judges, and end the actors."""
        closing = (worker.close.remote() for worker in self._workers)
        await asyncio.gather(self._judges.close(), *closing, return_exceptions=True)
        for worker in self._workers:
            ray.kill(worker)
