"""Who holds the devices: rollout engines and the learner take turns, or stay together."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

from rlflow.cluster.learner_group import LearnerGroup
from rlflow.cluster.rollout_group import RolloutGroup
from rlflow.cluster.weight_sync import WeightSync


class Holding(Enum):
    """What a role keeps on the device."""

    OFFLOADED = "offloaded"
    WEIGHTS = "weights"
    FULL = "full"


class Residency:
    """The hand-overs between sampling and learning, as an explicit state; at most one role is FULL.

    sampling -> learning: engines sleep, then the learner's states are loaded.
    learning -> sampling: optimiser and gradients leave, engines take memory for weights, weights are sent, the learner's weights
    leave, the prefix cache is forgotten (in the sync), engines take memory for their cache.
    Where both fit together, and on CPU, the same phases are walked and nothing moves but weights.
    """

    def __init__(self, learner: LearnerGroup, rollouts: RolloutGroup, weights: WeightSync) -> None:
        self._learner, self._rollouts, self._weights = learner, rollouts, weights
        self.learner = Holding.FULL
        self.rollout = Holding.OFFLOADED
        self.memory_gib: dict[str, float] = {}
        """Device memory in use on the first device at the end of learning, while syncing, and while sampling; empty on CPU."""
        self.seconds: dict[str, float] = {}
        """Time spent in moves, by kind, since the holder last cleared it."""

    @property
    def takes_turns(self) -> bool:
        """Whether the learner's states leave the device for the engines' turn."""
        return self._learner.can_offload

    async def to_learning(self) -> None:
        """Engines sleep; the learner holds everything."""
        if self.rollout is not Holding.OFFLOADED:
            await self._call_rollouts("sleep")
            self.rollout = Holding.OFFLOADED
        await self._move_learner(Holding.FULL)

    async def to_sampling(self) -> None:
        """Send the learner's weights; the engines hold everything. Dead engines are replaced first."""
        await self._measure("learning")
        await self._move_learner(Holding.WEIGHTS)
        await self._start_missing()
        await self._call_rollouts("wake_weights")
        self.rollout = Holding.WEIGHTS
        await self._measure("syncing")
        with self._timed("sync"):
            await self._weights.send(self._learner)
        await self._move_learner(Holding.OFFLOADED)
        await self._call_rollouts("wake_cache")
        self._set_rollout(Holding.FULL)
        await self._measure("sampling")

    async def _start_missing(self) -> None:
        """vLLM wants its share of the device free when it starts: the learner leaves altogether, then comes back."""
        if not self._rollouts.has_missing:
            return
        await self._move_learner(Holding.OFFLOADED)
        await self._rollouts.start_missing()
        await self._call_rollouts("sleep")
        await self._move_learner(Holding.WEIGHTS)

    async def _measure(self, phase: str) -> None:
        gib = await self._learner.memory_gib()
        if gib:
            self.memory_gib[phase] = gib

    async def _call_rollouts(self, method: str) -> None:
        if self._rollouts.can_sleep and self._rollouts.workers:
            with self._timed("sleep" if method == "sleep" else "wake"):
                await self._rollouts.call(method)

    async def _move_learner(self, holding: Holding) -> None:
        assert not (holding is Holding.FULL and self.rollout is not Holding.OFFLOADED), "two roles would hold the device"
        if self._learner.can_offload and holding is not self.learner:
            with self._timed("reload" if holding is Holding.FULL else "offload"):
                await self._learner.move(holding.value)
        self.learner = holding

    def _set_rollout(self, holding: Holding) -> None:
        assert not (holding is Holding.FULL and self.learner is not Holding.OFFLOADED), "two roles would hold the device"
        self.rollout = holding

    @contextmanager
    def _timed(self, kind: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[kind] = self.seconds.get(kind, 0.0) + time.perf_counter() - begin
