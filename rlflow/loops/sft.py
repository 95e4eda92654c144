"""Supervised fine-tuning: the learner alone."""

from dataclasses import dataclass

from rlflow.algorithms.losses import SmoothedCrossEntropy
from rlflow.cluster.handles import CheckpointHandle, ConversationLearner
from rlflow.data.order import RowOrder
from rlflow.loops.conversations import ConversationLengths, plan_conversations
from rlflow.loops.schedule import learning_rate
from rlflow.loops.state import LoopState
from rlflow.observe.clock import StepClock
from rlflow.observe.journal import Journal
from rlflow.spec.jobs import SftJob


@dataclass(slots=True)
class SftLoop:
    """The parts of an SFT run."""

    spec: SftJob
    total_steps: int
    learner: ConversationLearner
    train: ConversationLengths
    held_out: ConversationLengths
    order: RowOrder
    checkpoints: CheckpointHandle
    journal: Journal
    state: LoopState

    async def run(self) -> None:
        """Train to the last step."""
        self.journal.begin(self.total_steps)
        if self.state.step == 0:
            await self._evaluate(0)
        while self.state.step < self.total_steps:
            step, clock = self.state.step + 1, self.journal.clock()
            rows = self.order.rows(self.state.cursor, self.spec.batch_size)
            plan = plan_conversations(self.train, rows, self.spec.learner)
            with clock.phase("learn"):
                rate = learning_rate(self.spec.learner, self.state.step, self.total_steps)
                loss = SmoothedCrossEntropy(self.spec.label_smoothing)
                metrics = await self.learner.train_conversations(plan, rows, loss, rate)
            self.state.step, self.state.cursor = step, self.state.cursor + len(rows)
            await self._finish_step(step, clock, rows, metrics)

    async def _finish_step(self, step: int, clock: StepClock, rows: list[int], metrics: dict[str, float]) -> None:
        is_last = step == self.total_steps
        tokens = sum(self.train.tokens[row] for row in rows)
        evaluation = {}
        if is_last or (self.spec.evaluate.every and step % self.spec.evaluate.every == 0):
            with clock.phase("eval"):
                evaluation = await self._held_out_metrics()
        if is_last or step % self.spec.run.save_every == 0:
            with clock.phase("checkpoint"):
                await self.checkpoints.save(step, self.state.to_dict())
        seconds = clock.metrics()["step_seconds"]
        progress = {
            "epoch": self.order.epoch(self.state.cursor),
            "learn_tokens": tokens,
            "tokens_per_second": tokens / seconds,
        }
        self.journal.step(step, {**metrics, **evaluation, **progress}, clock)

    async def _evaluate(self, step: int) -> None:
        clock = self.journal.clock()
        with clock.phase("eval"):
            metrics = await self._held_out_metrics()
        if metrics:
            self.journal.step(step, metrics, clock)

    async def _held_out_metrics(self) -> dict[str, float]:
        rows = list(range(len(self.held_out.tokens)))[: self.spec.evaluate.max_rows]
        if not rows:
            return {}
        metrics = await self.learner.evaluate_conversations(plan_conversations(self.held_out, rows, self.spec.learner), rows)
        return {f"eval_{name}": metrics[name] for name in ("loss", "token_accuracy", "accuracy")}
