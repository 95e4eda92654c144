"""Who holds the devices: rollout engines and the learner take turns."""

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
    Roles that cannot move (on CPU) walk the same phases and stay where they are.
    """

    def __init__(self, learner: LearnerGroup, rollouts: RolloutGroup, weights: WeightSync) -> None:
        self._learner, self._rollouts, self._weights = learner, rollouts, weights
        self.learner = Holding.FULL
        self.rollout = Holding.OFFLOADED
        self.memory_gib: dict[str, float] = {}
        """Device memory in use on the first device at the start of learning, syncing and sampling; empty on CPU."""

    async def to_learning(self) -> None:
        """Engines sleep; the learner holds everything."""
        if self.rollout is not Holding.OFFLOADED:
            if self._rollouts.can_sleep and self._rollouts.workers:
                await self._rollouts.call("sleep")
            self.rollout = Holding.OFFLOADED
        await self._move_learner(Holding.FULL, "learning")

    async def to_sampling(self) -> None:
        """Send the learner's weights; the engines hold everything. Dead engines are replaced first."""
        await self._move_learner(Holding.WEIGHTS)
        await self._start_missing()
        if self._rollouts.can_sleep:
            await self._rollouts.call("wake_weights")
        self.rollout = Holding.WEIGHTS
        await self._measure("syncing")
        await self._weights.send(self._learner)
        await self._move_learner(Holding.OFFLOADED)
        if self._rollouts.can_sleep:
            await self._rollouts.call("wake_cache")
        self._set_rollout(Holding.FULL)
        await self._measure("sampling")

    async def _start_missing(self) -> None:
        """vLLM wants its share of the device free when it starts: the learner leaves altogether, then comes back."""
        if not self._rollouts.has_missing:
            return
        await self._move_learner(Holding.OFFLOADED)
        await self._rollouts.start_missing()
        if self._rollouts.can_sleep:
            await self._rollouts.call("sleep")
        await self._move_learner(Holding.WEIGHTS)

    async def _measure(self, phase: str) -> None:
        if self._rollouts.can_sleep:
            self.memory_gib[phase] = max(await self._rollouts.call("memory_gib"))

    async def _move_learner(self, holding: Holding, phase: str | None = None) -> None:
        assert not (holding is Holding.FULL and self.rollout is not Holding.OFFLOADED), "two roles would hold the device"
        if self._learner.can_offload and holding is not self.learner:
            memory_gib = await self._learner.move(holding.value)
            if phase is not None:
                self.memory_gib[phase] = memory_gib
        self.learner = holding

    def _set_rollout(self, holding: Holding) -> None:
        assert not (holding is Holding.FULL and self.learner is not Holding.OFFLOADED), "two roles would hold the device"
        self.rollout = holding
