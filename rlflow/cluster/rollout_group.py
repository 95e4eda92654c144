"""The rollout workers as one object."""

import asyncio
import logging
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray import ObjectRef

from rlflow.actors.rollout import RolloutActor, RolloutSetup
from rlflow.cluster.devices import DevicePlan, Seat
from rlflow.cluster.failure import RolloutsLost, in_one_line
from rlflow.cluster.placement import Placement
from rlflow.errors import RolloutError
from rlflow.rollout.completions import GroupRequest

logger = logging.getLogger("rlflow")


@dataclass(slots=True)
class RolloutWorker:
    """A live engine."""

    name: str
    seat: Seat
    actor: Any
    is_verified: bool = False
    """Whether its log-probabilities have been compared with the learner's since it started."""

    def generate(self, request: GroupRequest) -> tuple[ObjectRef, ObjectRef]:
        """References to the group's summary and to the group."""
        summary, group = self.actor.generate.remote(request)
        return summary, group


class RolloutGroup:
    """Starts engines, notices dead ones, and replaces them when the controller says so."""

    def __init__(self, placement: Placement, plan: DevicePlan, setup: RolloutSetup, *, max_restarts: int) -> None:
        self._placement, self._setup = placement, setup
        self._missing = plan.seats_of("rollout")
        self._restarts_left = max_restarts + len(self._missing)  # the first start of each seat counts too
        self._last_error = ""
        self.workers: list[RolloutWorker] = []
        self.can_sleep = setup.can_sleep

    @property
    def has_missing(self) -> bool:
        """Whether a seat is empty."""
        return bool(self._missing)

    @property
    def has_unverified(self) -> bool:
        """Whether an engine has not been compared with the learner since it started."""
        return any(not worker.is_verified for worker in self.workers)

    async def start_missing(self) -> int:
        """Start an engine in every empty seat; returns how many. The devices must be free (learner offloaded)."""
        seats, self._missing = self._missing, []
        self._restarts_left -= len(seats)
        if self._restarts_left < 0:
            raise RolloutError(
                f"rollout workers died more often than run.max_restarts allows; the last one with: {self._last_error}"
            )
        started = await asyncio.gather(*(self._start(seat) for seat in seats))
        self.workers = sorted([*self.workers, *started], key=lambda worker: worker.seat.index)
        return len(started)

    def mark_dead(self, worker: RolloutWorker, error: Exception) -> None:
        """Take a worker out; its seat stays empty until `start_missing`."""
        if worker in self.workers:
            self._last_error = in_one_line(error)
            logger.warning(f"rollout worker {worker.name} died: {self._last_error}")
            self.workers.remove(worker)
            self._missing.append(worker.seat)
            ray.kill(worker.actor)

    def mark_all_dead(self, error: Exception) -> None:
        """Take all workers out: their weights are not one version's."""
        for worker in list(self.workers):
            self.mark_dead(worker, error)

    async def call(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of every live worker. A worker that fails is dead: its engine is in an unknown state.

        Raises `RolloutsLost` if none is left.
        """
        workers = list(self.workers)
        results = await asyncio.gather(
            *(getattr(worker.actor, method).remote(*arguments) for worker in workers), return_exceptions=True
        )
        for worker, result in zip(workers, results, strict=True):
            if isinstance(result, Exception):
                self.mark_dead(worker, result)
        if not self.workers:
            raise RolloutsLost("no rollout worker is left")
        return [result for result in results if not isinstance(result, Exception)]

    async def close(self) -> None:
        """End all engines."""
        for worker in self.workers:
            ray.kill(worker.actor)
        self.workers = []

    async def _start(self, seat: Seat) -> RolloutWorker:
        timeout_s, actor = self._setup.rollout.startup_timeout_s, None
        try:
            async with asyncio.timeout(timeout_s):
                setup = replace(self._setup, visible_gpus=await self._placement.gpus_of(seat))
                actor = self._placement.start(RolloutActor, seat, max_concurrency=1000)
                await actor.start.remote(setup)
        except TimeoutError:
            if actor is not None:
                ray.kill(actor)
            raise RolloutError(
                f"rollout worker {seat.index} did not start within rollout.startup_timeout_s = {timeout_s:g} s"
            ) from None
        return RolloutWorker(f"rollout-{seat.index}", seat, actor)
