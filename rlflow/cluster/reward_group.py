"""The reward workers as one object."""

import asyncio
import itertools
from typing import Any

import ray
from ray import ObjectRef

from rlflow.actors.reward import PromptRow, RewardActor, RewardSetup
from rlflow.cluster.devices import DevicePlan
from rlflow.cluster.placement import Placement


class RewardGroup:
    """Hands groups to reward workers in turn. Ray restarts a dead worker and scores its groups again."""

    def __init__(self, placement: Placement, plan: DevicePlan, setup: RewardSetup, *, max_restarts: int) -> None:
        self._workers = [
            placement.start(RewardActor, seat, setup, max_restarts=max_restarts, max_task_retries=max_restarts)
            for seat in plan.seats_of("reward")
        ]
        self.holds_devices = any(seat.devices for seat in plan.seats_of("reward"))
        """Whether models of rewards lie on devices."""
        self._turn = itertools.cycle(self._workers)

    async def ready(self) -> None:
        """Wait until all workers are up."""
        await asyncio.gather(*(worker.ready.remote() for worker in self._workers))

    async def score(self, row: PromptRow, group: ObjectRef) -> tuple[list[Any], ObjectRef]:
        """Scores of a group, and a reference to its texts."""
        scores, texts = next(self._turn).score.remote(row, group)
        return await scores, texts

    async def close(self) -> None:
        """Stop the plugin processes and end the actors."""
        await asyncio.gather(*(worker.close.remote() for worker in self._workers), return_exceptions=True)
        for worker in self._workers:
            ray.kill(worker)
