"""Supervised fine-tuning: the learner alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from rlflow.algorithms.losses import SmoothedCrossEntropy
from rlflow.cluster.handles import ConversationLearner
from rlflow.loops.conversations import ConversationLengths, plan_conversations
from rlflow.loops.rows import RowLoop


@dataclass(slots=True)
class SftLoop(RowLoop):
    """The parts of an SFT run."""

    learner: ConversationLearner
    train: ConversationLengths
    held_out: ConversationLengths

    async def train_rows(self, rows: Sequence[int], rate: float) -> dict[str, float]:
        """Cross-entropy on the conversations."""
        loss = SmoothedCrossEntropy(self.spec.label_smoothing)
        return await self.learner.train_conversations(plan_conversations(self.train, rows, self.spec.learner), rows, loss, rate)

    async def measure(self, rows: Sequence[int]) -> dict[str, float]:
        """Loss and accuracies."""
        metrics = await self.learner.evaluate_conversations(plan_conversations(self.held_out, rows, self.spec.learner), rows)
        return {name: metrics[name] for name in ("loss", "token_accuracy", "accuracy")}

    def count_tokens(self, rows: Sequence[int]) -> int:
        """Of the conversations."""
        return sum(self.train.tokens[row] for row in rows)

    @property
    def num_held_out(self) -> int:
        """Held-out conversations."""
        return len(self.held_out.tokens)
