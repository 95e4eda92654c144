"""The learner ranks as one object."""

import asyncio
from collections.abc import Sequence
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from rlflow.actors.learner import LearnerActor, LearnerSetup
from rlflow.algorithms.batch_plan import StepPlan
from rlflow.algorithms.distillation import DistillationObjective
from rlflow.algorithms.losses import PolicyLoss, SmoothedCrossEntropy
from rlflow.algorithms.policy_batch import PolicyBatch
from rlflow.algorithms.policy_terms import KlEstimator
from rlflow.cluster.devices import DevicePlan
from rlflow.cluster.failure import LearnerLost, user_error
from rlflow.cluster.handles import PlannedRows
from rlflow.cluster.placement import Placement
from rlflow.spec.algorithm import PpoSpec


class LearnerGroup:
    """Calls every rank, and fails as a whole: if a rank dies, all are killed and `LearnerLost` is raised."""

    def __init__(self, placement: Placement, plan: DevicePlan, setup: LearnerSetup, *, can_offload: bool = False) -> None:
        self._setup = setup
        self.can_offload = can_offload
        """Whether states leave the device for the rollout engines' turn."""
        self._ranks = [placement.start(LearnerActor, seat) for seat in plan.seats_of("learner")]
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

    async def train_policy(
        self,
        batch: PolicyBatch,
        groups: Sequence[ObjectRef],
        token_loss: PolicyLoss,
        learning_rates: Sequence[float],
        *,
        on_policy: bool,
    ) -> list[dict[str, float]]:
        """Metrics of each optimiser step."""
        return await self._first("train_policy", ray.put(batch), list(groups), token_loss, list(learning_rates), on_policy)

    async def sequence_kl(self, batch: PolicyBatch, groups: Sequence[ObjectRef], estimator: KlEstimator) -> dict[int, float]:
        """KL from the reference of each sample of a batch of one step, summed over its tokens."""
        ranks = await self._all("sequence_kl", ray.put(batch), list(groups), estimator)
        return {sample: kl for rank in ranks for sample, kl in rank.items()}

    async def refresh_reference(self) -> None:
        """The policy becomes its own reference."""
        await self._all("refresh_reference")

    async def train_ppo(
        self,
        batch: PolicyBatch,
        groups: Sequence[ObjectRef],
        spec: PpoSpec,
        policy_rates: Sequence[float],
        critic_rates: Sequence[float],
    ) -> list[dict[str, float]]:
        """Metrics of each optimiser step."""
        return await self._first("train_ppo", ray.put(batch), list(groups), spec, list(policy_rates), list(critic_rates))

    async def sampler_mismatch(self, batch: PolicyBatch, groups: Sequence[ObjectRef], token_loss: PolicyLoss) -> dict[str, float]:
        """Metrics of a batch without training on it."""
        return await self._first("sampler_mismatch", ray.put(batch), list(groups), token_loss)

    async def train_conversations(
        self, step: StepPlan, rows: Sequence[int], token_loss: SmoothedCrossEntropy, learning_rate: float
    ) -> dict[str, float]:
        """Metrics of one optimiser step on tokenised rows."""
        return await self._first("train_conversations", step, list(rows), token_loss, learning_rate)

    async def distill_samples(
        self, batch: PolicyBatch, groups: Sequence[ObjectRef], objective: DistillationObjective, learning_rate: float
    ) -> dict[str, float]:
        """Metrics of one optimiser step on sampled completions."""
        return await self._first("distill_samples", ray.put(batch), list(groups), objective, learning_rate)

    async def distill_conversations(
        self, step: StepPlan, rows: Sequence[int], objective: DistillationObjective, learning_rate: float
    ) -> dict[str, float]:
        """Metrics of one optimiser step on tokenised rows."""
        return await self._first("distill_conversations", step, list(rows), objective, learning_rate)

    async def evaluate_conversations(self, step: StepPlan, rows: Sequence[int]) -> dict[str, float]:
        """Metrics of held-out rows."""
        return await self._first("evaluate_conversations", step, list(rows))

    async def train_preferences(
        self, planned: PlannedRows, mismatched: PlannedRows | None, objective: Any, learning_rate: float
    ) -> dict[str, float]:
        """Metrics of one optimiser step on tokenised preferences; KTO estimates its divergence from the mismatched ones first."""
        return await self._first("train_preferences", planned, mismatched, objective, learning_rate)

    async def evaluate_preferences(
        self, planned: PlannedRows, mismatched: PlannedRows | None, objective: Any
    ) -> dict[str, float]:
        """Metrics of held-out preferences."""
        return await self._first("evaluate_preferences", planned, mismatched, objective)

    async def store_reference(self, passes: Sequence[PlannedRows], file: int) -> None:
        """Write the present weights' log-probabilities of a whole file beside it."""
        await self._all("store_reference", list(passes), file)

    async def write_bucket(self, index: int) -> dict[str, Any]:
        """Handles of a bucket's memory by device."""
        handles = await self._all("write_bucket", index)
        return {handle.device: handle for handle in handles}

    async def release_buffer(self) -> None:
        """Free the send buffers."""
        await self._all("release_buffer")

    async def move(self, residency: str) -> None:
        """Move all ranks' states."""
        await self._all("move", residency)

    async def memory_gib(self) -> float:
        """Memory in use on the first rank's device by all processes, in GiB; 0 on CPU."""
        return await self._one(self._ranks[0].memory_gib.remote())

    async def save(self, state: str, model: str, client_state: dict[str, Any]) -> None:
        """Write training state and model."""
        await self._all("save", state, model, client_state)

    async def load(self, state: str) -> dict[str, Any]:
        """Restore the training state; returns what the controller stored with it."""
        return await self._first("load", state)

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
            what = "a learner rank died" if isinstance(error, RayActorError) else "samples are gone with a node"
            raise LearnerLost(f"{what}: {' '.join(str(error).split())}") from error
        except RayTaskError as error:
            raise user_error(error) or error from None
