"""Ranks of a learner actor as one object."""

import asyncio
from collections.abc import Sequence
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from rlflow.actors.learner import LearnerActor, LearnerSetup
from rlflow.cluster.devices import Seat
from rlflow.cluster.failure import LearnerLost, user_error
from rlflow.cluster.placement import Placement


class RankGroup:
    """Calls every rank, and fails as a whole: if a rank dies, all are killed and `LearnerLost` is raised."""

    def __init__(self, placement: Placement, seats: Sequence[Seat], setup: LearnerSetup) -> None:
        self._setup = setup
        self._role = seats[0].role
        self._ranks = [placement.start(LearnerActor, seat) for seat in seats]
        self.buckets: tuple[Any, ...] = ()

    @property
    def num_ranks(self) -> int:
        """Size of the group."""
        return len(self._ranks)

    async def import_libraries(self) -> None:
        """Let the ranks import their libraries, which takes long and needs no device."""
        await self._all("import_libraries")

    async def build(self) -> None:
        """Load the model on all ranks together."""
        address = await self._one(self._ranks[0].rendezvous.remote())
        world_size = len(self._ranks)
        built = await self._gather(
            [rank.build.remote(self._setup, index, world_size, address) for index, rank in enumerate(self._ranks)]
        )
        self.buckets = built[0]

    async def close(self) -> None:
        """Leave the process group and end the actors."""
        await self._all("close")
        self.kill()

    def kill(self) -> None:
        """End the actors at once."""
        for rank in self._ranks:
            ray.kill(rank)

    async def _first(self, method: str, *arguments: Any) -> Any:
        return (await self._all(method, *arguments))[0]

    async def _all(self, method: str, *arguments: Any) -> list[Any]:
        return await self._gather([getattr(rank, method).remote(*arguments) for rank in self._ranks])

    async def _one(self, reference: ObjectRef) -> Any:
        return (await self._gather([reference]))[0]

    async def _gather(self, references: list[ObjectRef]) -> list[Any]:
        try:
            return list(await asyncio.gather(*references))
        except (RayActorError, ObjectLostError) as error:  # ranks that have their samples wait for one that lost its own
            self.kill()
            what = f"a {self._role} rank died" if isinstance(error, RayActorError) else "samples are gone with a node"
            raise LearnerLost(f"{what}: {' '.join(str(error).split())}") from error
        except RayTaskError as error:
            raise user_error(error) or error from None
