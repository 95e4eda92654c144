"""Turns on the devices, with everything that may go wrong at a hand-over."""

import logging
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from rlflow.cluster.failure import RolloutsLost
from rlflow.cluster.residency import Residency
from rlflow.cluster.verification import EngineVerification
from rlflow.cluster.weight_sync import WeightSync

logger = logging.getLogger("rlflow")


class HandOver:
    """Moves between sampling and learning; replaces dead engines, and verifies new ones."""

    def __init__(
        self,
        residency: Residency,
        weights: WeightSync,
        verification: EngineVerification,
        probe_prompts: Sequence[np.ndarray],
    ) -> None:
        self._residency, self._weights, self._verification = residency, weights, verification
        self._probe_prompts = probe_prompts

    @property
    def weight_version(self) -> int:
        """Version of the weights that the samplers hold."""
        return self._weights.version

    def metrics(self) -> dict[str, float]:
        """Seconds of each kind of move since the last call, and the device memory in use by phase (nothing on CPU)."""
        seconds, self._residency.seconds = self._residency.seconds, {}
        memory = {f"gpu_memory_gib_{phase}": gib for phase, gib in self._residency.memory_gib.items()}
        return {f"{kind}_seconds": spent for kind, spent in seconds.items()} | memory

    async def to_learning(self) -> None:
        """The learner's turn."""
        await self._residency.to_learning()

    async def to_sampling(self) -> None:
        """The samplers' turn, with the learner's weights. If all engines die on the way, new ones are started."""
        while True:
            try:
                await self._residency.to_sampling()
                difference = await self._verification.verify_new(self._probe_prompts)
            except RolloutsLost:  # bounded: starting engines too often raises
                await self._residency.to_learning()
                continue
            if difference is not None:
                logger.info(f"weights verified: sampler and learner log-probabilities differ by {difference:.2g}")
            return

    async def write(self, write: Callable[[], Awaitable[None]]) -> None:
        """Call `write`, which reads the learner's states; if those have left the device, in a turn of the learner."""
        if not self._residency.takes_turns:
            await write()
            return
        await self._residency.to_learning()
        await write()
        await self.to_sampling()

    async def recover(self) -> None:
        """Start engines after all have died, with the learner's weights."""
        await self.to_learning()
        await self.to_sampling()
