"""Preference learning: DPO and its relatives, KTO, and reward models. The learner alone.

Row r of the tokenised data is its sequences 2r and 2r + 1: the chosen and the rejected conversation of a pair, or (KTO) a
labelled conversation and its prompt with another row's answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rlflow.algorithms.batch_plan import plan_step
from rlflow.algorithms.kto_loss import KtoLoss
from rlflow.algorithms.pair_losses import PAIR_LOSSES, PairObjective, Sft
from rlflow.algorithms.reward_model_loss import RewardModelLoss
from rlflow.cluster.handles import PlannedRows, PreferenceLearner
from rlflow.loops.rows import RowLoop
from rlflow.spec.jobs import DpoJob, KtoJob, PreferenceJob, RewardModelJob
from rlflow.spec.learner import LearnerSpec
from rlflow.spec.preferences import DpoSpec

_SCORED_TOGETHER = 256
"""Sequences of a scoring pass."""
Objective = PairObjective | KtoLoss | RewardModelLoss


@dataclass(slots=True)
class PreferenceLoop(RowLoop):
    """The parts of a run on preferences."""

    learner: PreferenceLearner
    train: Sequence[int]
    """Tokens of each training sequence, two a row."""
    held_out: Sequence[int]
    """Tokens of each held-out sequence."""
    objective: Objective

    async def train_rows(self, rows: Sequence[int], rate: float) -> dict[str, float]:
        """The objective's mean over the rows."""
        planned, mismatched = self._plan(self.train, rows)
        return _with_margin(await self.learner.train_preferences(planned, mismatched, self.objective, rate))

    async def measure(self, rows: Sequence[int]) -> dict[str, float]:
        """Loss, accuracy and rewards."""
        planned, mismatched = self._plan(self.held_out, rows)
        return _with_margin(await self.learner.evaluate_preferences(planned, mismatched, self.objective))

    def count_tokens(self, rows: Sequence[int]) -> int:
        """Of both sequences of each row."""
        return sum(self.train[2 * row] + self.train[2 * row + 1] for row in rows)

    @property
    def num_held_out(self) -> int:
        """Held-out rows."""
        return len(self.held_out) // 2

    def _plan(self, tokens: Sequence[int], rows: Sequence[int]) -> tuple[PlannedRows, PlannedRows | None]:
        """What is trained on and, for KTO, what its divergence is estimated from first."""
        weight = 1.0 / len(rows)
        if isinstance(self.objective, KtoLoss):
            labelled = plan_sequences(tokens, [2 * row for row in rows], self.spec.learner, weight)
            return labelled, plan_sequences(tokens, [2 * row + 1 for row in rows], self.spec.learner)
        both = [sequence for row in rows for sequence in (2 * row, 2 * row + 1)]
        return plan_sequences(tokens, both, self.spec.learner, weight, in_pairs=True), None


def plan_sequences(
    tokens: Sequence[int], sequences: Sequence[int], spec: LearnerSpec, weight: float = 0.0, *, in_pairs: bool = False
) -> PlannedRows:
    """One step on these sequences of the data, each of this weight; neighbours stay together if they are pairs."""
    count = len(sequences)
    step = plan_step(
        [(i, i + 1) for i in range(0, count, 2)] if in_pairs else range(count),
        [tokens[sequence] for sequence in sequences],
        dict.fromkeys(range(count), weight),
        num_ranks=spec.num_ranks,
        micro_batch_tokens=spec.micro_batch_tokens,
        packing=spec.packing,
        sequence_parallel=spec.sequence_parallel,
    )
    return PlannedRows(step, tuple(sequences))


def plan_scoring(tokens: Sequence[int], spec: LearnerSpec) -> list[PlannedRows]:
    """All sequences of the data in passes of a fair size."""
    return [
        plan_sequences(tokens, range(start, min(start + _SCORED_TOGETHER, len(tokens))), spec)
        for start in range(0, len(tokens), _SCORED_TOGETHER)
    ]


def preference_objective(job: PreferenceJob) -> Objective:
    """The objective that the spec asks for."""
    if isinstance(job, DpoJob):
        return _pair_objective(job.dpo)
    if isinstance(job, KtoJob):
        return KtoLoss(job.kto.beta, job.kto.desirable_weight, job.kto.undesirable_weight)
    assert isinstance(job, RewardModelJob)
    return RewardModelLoss(job.rm.center_coefficient)


def _pair_objective(spec: DpoSpec) -> PairObjective:
    losses = [(PAIR_LOSSES[loss.type](**loss.model_dump(exclude={"type", "weight"})), loss.weight) for loss in spec.losses]
    if spec.rpo_alpha is not None:
        losses.append((Sft(), spec.rpo_alpha))
    return PairObjective(tuple(losses))


def _with_margin(metrics: dict[str, float]) -> dict[str, float]:
    """KTO's rewards have no pairs: their margin is the difference of the means, where a step has answers of both kinds."""
    if "reward_margin_mean" not in metrics and {"rewards_chosen_mean", "rewards_rejected_mean"} <= metrics.keys():
        metrics = {**metrics, "reward_margin_mean": metrics["rewards_chosen_mean"] - metrics["rewards_rejected_mean"]}
    return metrics
