"""Training on tokenised rows with the learner alone: the loop that all such kinds share."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlflow.cluster.handles import CheckpointHandle
from rlflow.data.order import VisitOrder
from rlflow.loops.early_stopping import note_evaluation, stop_reason
from rlflow.loops.schedule import learning_rate
from rlflow.loops.state import LoopState
from rlflow.observe.clock import StepClock
from rlflow.observe.journal import Journal


@dataclass(slots=True)
class RowLoop(ABC):
    """The parts of a run; a kind says how it trains on rows and what it measures on held-out ones."""

    spec: Any
    total_steps: int
    order: VisitOrder
    checkpoints: CheckpointHandle
    journal: Journal
    state: LoopState

    @abstractmethod
    async def train_rows(self, rows: Sequence[int], rate: float) -> dict[str, float]:
        """One optimiser step on these rows; its metrics."""

    @abstractmethod
    async def measure(self, rows: Sequence[int]) -> dict[str, float]:
        """Metrics of held-out rows."""

    @abstractmethod
    def count_tokens(self, rows: Sequence[int]) -> int:
        """Tokens of training rows."""

    @property
    @abstractmethod
    def num_held_out(self) -> int:
        """Number of held-out rows."""

    async def run(self) -> None:
        """Train to the last step."""
        self.journal.begin(self.total_steps)
        if self.state.step == 0:
            await self._first_evaluation()
        stopping = self.spec.run.early_stopping
        while self.state.step < self.total_steps and stop_reason(self.state, stopping) is None:
            step, clock = self.state.step + 1, self.journal.clock()
            rows = await asyncio.to_thread(self.order.rows, self.state.cursor, self.spec.batch_size)  # a stream may have to wait
            with clock.phase("learn"):
                rate = learning_rate(self.spec.learner, self.state.step, self.total_steps)
                metrics = await self.train_rows(rows, rate)
            self.state.step, self.state.cursor = step, self.state.cursor + len(rows)
            await self._finish_step(step, clock, rows, metrics)
        self.journal.ended(stop_reason(self.state, stopping))

    async def _finish_step(self, step: int, clock: StepClock, rows: list[int], metrics: dict[str, float]) -> None:
        is_last = step == self.total_steps
        tokens = self.count_tokens(rows)
        evaluation = {}
        if is_last or (self.spec.evaluate.every and step % self.spec.evaluate.every == 0):
            with clock.phase("eval"):
                evaluation = await self._evaluate()
            note_evaluation(self.state, evaluation, self.spec.run.early_stopping)
            is_last = is_last or stop_reason(self.state, self.spec.run.early_stopping) is not None
        if self.checkpoints.is_due(step, evaluation, is_last=is_last):
            with clock.phase("checkpoint"):
                await self.checkpoints.save(step, self.state.to_dict(), evaluation)
        seconds = clock.metrics()["step_seconds"]
        progress = {
            "epoch": self.order.epoch(self.state.cursor),
            "learn_tokens": tokens,
            "tokens_per_second": tokens / seconds,
        }
        self.journal.step(step, {**metrics, **evaluation, **progress}, clock)

    async def _first_evaluation(self) -> None:
        clock = self.journal.clock()
        with clock.phase("eval"):
            metrics = await self._evaluate()
        self.checkpoints.check_evaluation(metrics)
        note_evaluation(self.state, metrics, self.spec.run.early_stopping)
        if metrics:
            self.journal.step(0, metrics, clock)

    async def _evaluate(self) -> dict[str, float]:
        rows = list(range(self.num_held_out))[: self.spec.evaluate.max_rows]
        if not rows:
            return {}
        return {f"eval_{name}": value for name, value in (await self.measure(rows)).items()}
