"""What a loop may ask of the cluster: the protocols it is written against."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rlflow.algorithms.batch_plan import StepPlan
from rlflow.algorithms.distillation import DistillationObjective, TeacherAnswers
from rlflow.algorithms.losses import PolicyLoss, SmoothedCrossEntropy
from rlflow.algorithms.policy_batch import PolicyBatch, ScoredGroup
from rlflow.algorithms.policy_terms import KlEstimator
from rlflow.rollout.completions import GroupRequest, GroupSummary
from rlflow.spec.algorithm import PpoSpec

RowOf = Callable[[int], Any]


class ScoreHandle(Protocol):
    """Rewards of one completion."""

    @property
    def total(self) -> float | None: ...
    @property
    def by_name(self) -> Mapping[str, float | None]: ...
    @property
    def failures(self) -> Sequence[Any]: ...


class GroupHandle(Protocol):
    """A sampled and scored group: scalars, and opaque references to its arrays and texts."""

    @property
    def summary(self) -> GroupSummary: ...
    @property
    def scores(self) -> Sequence[ScoreHandle]: ...
    @property
    def arrays(self) -> Any: ...
    def scored(self) -> ScoredGroup: ...


class PromptTable(Protocol):
    """Prompts by number."""

    def __len__(self) -> int: ...
    def prompt_ids(self, index: int) -> np.ndarray:
        """Token ids, int32 [p]."""
        ...

    def row(self, index: int) -> Any:
        """The row, as rewards see it."""
        ...


class SamplerHandle(Protocol):
    """Samples and scores."""

    async def sample(self, requests: Sequence[GroupRequest], row_of: RowOf, recover: Callable[[], Awaitable[None]]) -> Any:
        """Groups in the order of prompt ids."""
        ...

    async def texts(self, groups: Sequence[Any]) -> list[list[str]]:
        """The completions' texts."""
        ...


class HandOverHandle(Protocol):
    """Turns on the devices."""

    @property
    def weight_version(self) -> int:
        """Version the samplers hold."""
        ...

    def metrics(self) -> dict[str, float]:
        """Seconds of each kind of move since the last call, and device memory by phase."""
        ...

    async def to_learning(self) -> None:
        """The learner's turn."""
        ...

    async def to_sampling(self) -> None:
        """The samplers' turn, with the learner's weights."""
        ...

    async def write(self, write: Callable[[], Awaitable[None]]) -> None:
        """Call what writes a checkpoint with the learner's states on its devices."""
        ...

    async def recover(self) -> None:
        """Start engines after all have died, with the learner's weights."""
        ...


class PolicyLearner(Protocol):
    """Trains on sampled groups."""

    async def train_policy(
        self,
        batch: PolicyBatch,
        groups: Sequence[Any],
        token_loss: PolicyLoss,
        learning_rates: Sequence[float],
        *,
        on_policy: bool,
    ) -> list[Mapping[str, float]]:
        """Metrics of each optimiser step."""
        ...

    async def sequence_kl(self, batch: PolicyBatch, groups: Sequence[Any], estimator: KlEstimator) -> Mapping[int, float]:
        """KL from the reference of each sample of a batch of one step, summed over its tokens."""
        ...

    async def refresh_reference(self) -> None:
        """The policy becomes its own reference."""
        ...


class PpoLearner(Protocol):
    """Trains a policy and its critic on sampled groups."""

    async def train_ppo(
        self,
        batch: PolicyBatch,
        groups: Sequence[Any],
        spec: PpoSpec,
        policy_rates: Sequence[float],
        critic_rates: Sequence[float],
    ) -> list[Mapping[str, float]]:
        """Metrics of each optimiser step; without `policy_rates` only the critic is trained."""
        ...


class Teacher(Protocol):
    """Answers from devices of its own."""

    async def answer_samples(self, batch: PolicyBatch, groups: Sequence[Any]) -> TeacherAnswers:
        """For sampled completions."""
        ...

    async def answer_conversations(self, step: StepPlan, rows: Sequence[int]) -> TeacherAnswers:
        """For tokenised rows."""
        ...


class DistillationLearner(Protocol):
    """Trains a policy towards a teacher; without answers it has the teacher itself."""

    async def distill_samples(
        self,
        batch: PolicyBatch,
        groups: Sequence[Any],
        objective: DistillationObjective,
        learning_rate: float,
        answers: TeacherAnswers | None,
    ) -> dict[str, float]:
        """Metrics of an optimiser step on sampled completions."""
        ...

    async def distill_conversations(
        self,
        step: StepPlan,
        rows: Sequence[int],
        objective: DistillationObjective,
        learning_rate: float,
        answers: TeacherAnswers | None,
    ) -> dict[str, float]:
        """Metrics of an optimiser step on tokenised rows."""
        ...


class ConversationLearner(Protocol):
    """Trains on tokenised conversations."""

    async def train_conversations(
        self, step: StepPlan, rows: Sequence[int], token_loss: SmoothedCrossEntropy, learning_rate: float
    ) -> dict[str, float]:
        """Metrics of an optimiser step."""
        ...

    async def evaluate_conversations(self, step: StepPlan, rows: Sequence[int]) -> dict[str, float]:
        """Metrics without training."""
        ...


@dataclass(frozen=True, slots=True)
class PlannedRows:
    """A step on tokenised rows."""

    step: StepPlan
    """Its sequence i is row `rows[i]` of the file."""
    rows: tuple[int, ...]


class PreferenceLearner(Protocol):
    """Trains on tokenised preferences."""

    async def train_preferences(
        self, planned: PlannedRows, mismatched: PlannedRows | None, objective: Any, learning_rate: float
    ) -> dict[str, float]:
        """Metrics of an optimiser step."""
        ...

    async def evaluate_preferences(
        self, planned: PlannedRows, mismatched: PlannedRows | None, objective: Any
    ) -> dict[str, float]:
        """Metrics without training."""
        ...


class CheckpointHandle(Protocol):
    """Writes checkpoints."""

    def check_evaluation(self, metrics: Mapping[str, float]) -> None:
        """Raise `SpecError` if the first evaluation lacks what tells the best checkpoint, or when to stop."""
        ...

    def is_due(self, step: int, metrics: Mapping[str, float], *, is_last: bool) -> bool:
        """Whether a checkpoint follows the step, whose evaluation may be the best so far."""
        ...

    async def save(self, step: int, state: dict[str, Any], metrics: Mapping[str, float]) -> None:
        """Write a complete checkpoint with the step's evaluation, then remove older ones."""
        ...
