"""Supervised fine-tuning: the learner alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from rlflow.algorithms.batch_plan import StepPlan, plan_step
from rlflow.algorithms.losses import SmoothedCrossEntropy
from rlflow.cluster.handles import ConversationLearner
from rlflow.loops.rows import RowLoop


@dataclass(frozen=True, slots=True)
class ConversationLengths:
    """What the controller knows of tokenised conversations."""

    tokens: Sequence[int]
    """Length of each."""
    loss_weights: Sequence[float]
    """Sum of each one's loss weights."""


@dataclass(slots=True)
class SftLoop(RowLoop):
    """The parts of an SFT run."""

    learner: ConversationLearner
    train: ConversationLengths
    held_out: ConversationLengths

    async def train_rows(self, rows: Sequence[int], rate: float) -> dict[str, float]:
        """Cross-entropy on the conversations."""
        loss = SmoothedCrossEntropy(self.spec.label_smoothing)
        return await self.learner.train_conversations(self._plan(self.train, rows), rows, loss, rate)

    async def measure(self, rows: Sequence[int]) -> dict[str, float]:
        """Loss and accuracies."""
        metrics = await self.learner.evaluate_conversations(self._plan(self.held_out, rows), rows)
        return {name: metrics[name] for name in ("loss", "token_accuracy", "accuracy")}

    def count_tokens(self, rows: Sequence[int]) -> int:
        """Of the conversations."""
        return sum(self.train.tokens[row] for row in rows)

    @property
    def num_held_out(self) -> int:
        """Held-out conversations."""
        return len(self.held_out.tokens)

    def _plan(self, lengths: ConversationLengths, rows: Sequence[int]) -> StepPlan:
        """Every token's loss is weighted by its own weight over the sum of the step's: a token mean over all ranks."""
        total = sum(lengths.loss_weights[row] for row in rows)
        weight = 1.0 / total if total else 0.0
        return plan_step(
            range(len(rows)),
            [lengths.tokens[row] for row in rows],
            dict.fromkeys(range(len(rows)), weight),
            num_ranks=self.spec.learner.num_ranks,
            micro_batch_tokens=self.spec.learner.micro_batch_tokens,
            packing=self.spec.learner.packing,
        )
