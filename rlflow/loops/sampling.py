"""What every loop that samples has in common: turns on the devices, evaluation, logs and checkpoints."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rlflow.algorithms.policy_batch import PolicyBatch, PolicyBatchSettings
from rlflow.cluster.handles import CheckpointHandle, HandOverHandle, PromptTable, SamplerHandle
from rlflow.data.order import RowOrder
from rlflow.loops.batch_metrics import check_failures, completion_rows, evaluation_metrics
from rlflow.loops.early_stopping import note_evaluation, stop_reason
from rlflow.loops.requests import evaluation_requests, training_requests
from rlflow.loops.schedule import learning_rate
from rlflow.loops.state import LoopState
from rlflow.observe.clock import StepClock
from rlflow.observe.journal import Journal
from rlflow.spec.jobs import RolloutJob
from rlflow.spec.learner import LearnerSpec


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step gave."""

    metrics: dict[str, float]
    num_tokens: int
    """Tokens of the step, prompts included."""
    sampled: Any = None
    """The groups, if the step sampled any."""
    batch: PolicyBatch | None = None
    """What was trained on of them."""
    num_prompts: int | None = None
    """Rows of the data that the step took, if not those it was given."""


@dataclass(slots=True)
class SamplingLoop(ABC):
    """The parts of a run that samples. A kind says what a step is."""

    spec: Any
    total_steps: int
    learner: Any
    sampler: SamplerHandle
    hand_over: HandOverHandle
    prompts: PromptTable
    held_out: PromptTable
    order: RowOrder
    checkpoints: CheckpointHandle
    journal: Journal
    state: LoopState

    @abstractmethod
    async def take_step(self, step: int, rows: list[int], clock: StepClock) -> StepResult:
        """One step of the algorithm on these rows."""

    async def run(self) -> None:
        """Train to the last step."""
        self.journal.begin(self.total_steps)
        self._say_what_is_not_measured()
        self.warn()
        await self.hand_over.to_sampling()
        self.hand_over.metrics()  # the first moves belong to no step
        if self.state.step == 0:
            await self._first_evaluation()
        stopping = self.spec.run.early_stopping
        while self.state.step < self.total_steps and stop_reason(self.state, stopping) is None:
            step, clock = self.state.step + 1, self.journal.clock()
            rows = self.order.rows(self.state.cursor, self.spec.prompts_per_step)
            version = self.hand_over.weight_version
            result = await self.take_step(step, rows, clock)
            cursor = self.state.cursor + (result.num_prompts or len(rows))
            self.state = replace(self.state, step=step, cursor=cursor, weight_version=self.hand_over.weight_version)
            await self._finish_step(clock, result, version)
        self.journal.ended(stop_reason(self.state, stopping))

    def warn(self) -> None:  # noqa: B027  (a kind may have nothing to say)
        """Say once what the spec's author may not expect."""

    async def sample(self, step: int, rows: list[int], clock: StepClock, first_slot: int = 0) -> Any:
        """Sample and score the rows' prompts; `first_slot` counts those sampled before in the step."""
        with clock.phase("generate"):
            requests = training_requests(self.spec, step, rows, self.prompts.prompt_ids, first_slot=first_slot)
            sampled = await self.sampler.sample(requests, self.prompts.row, self.hand_over.recover)
        clock.move("generate", "reward", sampled.reward_seconds)
        check_failures(sampled.groups, self.spec.reward_pool.failure_threshold, self.journal.note)
        return sampled

    async def learn(self, clock: StepClock, train: Callable[[], Awaitable[dict[str, float]]]) -> dict[str, float]:
        """The learner's turn, and back with the new weights."""
        with clock.phase("hand_over"):
            await self.hand_over.to_learning()
        with clock.phase("learn"):
            metrics = await train()
        with clock.phase("hand_over"):
            await self.hand_over.to_sampling()
        moves = self.hand_over.metrics()
        clock.move("hand_over", "sync", moves.pop("sync_seconds", 0.0))
        return metrics | moves

    def _say_what_is_not_measured(self) -> None:
        if not self.spec.rollout.samples_model_distribution:
            self.journal.note(
                "rollout.top_p < 1 or rollout.top_k > 0: the sampler's log-probabilities are renormalised, so ratios use the "
                "learner's own, and the difference between the two is not measured"
            )

    async def _finish_step(self, clock: StepClock, result: StepResult, version: int) -> None:
        step, every, metrics = self.state.step, self.spec.evaluate.every, dict(result.metrics)
        is_last, log_every = step == self.total_steps, self.spec.run.log_completions_every
        if is_last or (every and step % every == 0):
            with clock.phase("eval"):
                evaluation = await self._evaluate()
            metrics |= evaluation
            note_evaluation(self.state, evaluation, self.spec.run.early_stopping)
            is_last = is_last or stop_reason(self.state, self.spec.run.early_stopping) is not None
        if result.batch is not None and log_every and (is_last or step % log_every == 0):
            groups = result.sampled.groups
            texts = await self.sampler.texts(groups)
            self.journal.completions(step, completion_rows(groups, result.batch, texts, self.prompts.row))
        if self.checkpoints.is_due(step, metrics, is_last=is_last):
            with clock.phase("checkpoint"):
                await self.hand_over.write(lambda: self.checkpoints.save(step, self.state.to_dict(), metrics))
        metrics |= {
            "weight_version": version,
            "learn_tokens": sum(s.num_tokens for s in result.batch.samples) if result.batch else result.num_tokens,
            "tokens_per_second": result.num_tokens / clock.metrics()["step_seconds"],
            "epoch": self.order.epoch(self.state.cursor),
        }
        self.journal.step(step, metrics, clock)

    async def _first_evaluation(self) -> None:
        clock = self.journal.clock()
        with clock.phase("eval"):
            metrics = await self._evaluate()
        self.checkpoints.check_evaluation(metrics)
        note_evaluation(self.state, metrics, self.spec.run.early_stopping)
        if metrics:
            self.journal.step(0, metrics, clock)

    async def _evaluate(self) -> dict[str, float]:
        rows = list(range(len(self.held_out)))[: self.spec.evaluate.max_rows]
        if not rows:
            return {}
        requests = evaluation_requests(self.spec, rows, self.held_out.prompt_ids)
        sampled = await self.sampler.sample(requests, self.held_out.row, self.hand_over.recover)
        check_failures(sampled.groups, self.spec.reward_pool.failure_threshold, self.journal.note)
        return evaluation_metrics(sampled.groups)


def token_mean_settings(job: RolloutJob, *, optimizer_steps: int = 1, epochs: int = 1) -> PolicyBatchSettings:
    """All completions, each optimiser step a mean over its tokens."""
    return PolicyBatchSettings(
        loss_type="bnpo",
        scale_rewards="none",
        filter_zero_std=False,
        filter_overlong=False,
        optimizer_steps=optimizer_steps,
        epochs=epochs,
        max_completion_tokens=job.rollout.max_completion_tokens,
        num_ranks=job.learner.num_ranks,
        micro_batch_tokens=job.learner.micro_batch_tokens,
        packing=job.learner.packing,
        sequence_parallel=job.learner.sequence_parallel,
    )


def sampled_tokens(sampled: Any) -> int:
    """Tokens of all sequences of a sampled batch."""
    return sum(g.summary.prompt_tokens * len(g.scores) + sum(g.summary.completion_tokens) for g in sampled.groups)


def step_rates(spec: LearnerSpec, step: int, total_steps: int, per_batch: int, count: int) -> list[float]:
    """Learning rates of the `count` optimiser steps of step `step` (from 1), of `per_batch` that a batch may have."""
    return [learning_rate(spec, (step - 1) * per_batch + i, total_steps * per_batch) for i in range(count)]


def mean_metrics(steps: list[Mapping[str, float]]) -> dict[str, float]:
    """Means over optimiser steps, of each metric over the steps that have it."""
    names = dict.fromkeys(name for step in steps for name in step)
    return {name: sum(known := [s[name] for s in steps if name in s]) / len(known) for name in names}
