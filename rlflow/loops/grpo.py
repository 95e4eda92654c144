"""Group-relative policy optimisation: sample groups, score them, train on their advantages, send the weights."""

from dataclasses import dataclass, replace
from typing import Any

from rlflow.algorithms.losses import PolicyLoss
from rlflow.algorithms.policy_batch import PolicyBatch, PolicyBatchSettings, plan_policy_batch
from rlflow.cluster.handles import PolicyLearner
from rlflow.loops.batch_metrics import sampling_metrics
from rlflow.loops.sampling import SamplingLoop, StepResult, mean_metrics, sampled_tokens, step_rates, token_mean_settings
from rlflow.observe.clock import StepClock
from rlflow.spec.jobs import GrpoJob


@dataclass(slots=True)
class GrpoLoop(SamplingLoop):
    """A GRPO run."""

    spec: GrpoJob
    learner: PolicyLearner

    async def take_step(self, step: int, rows: list[int], clock: StepClock) -> StepResult:
        """Sample, train on the groups' advantages, send the weights."""
        sampled = await self.sample(step, rows, clock)
        batch = plan_policy_batch([group.scored() for group in sampled.groups], batch_settings(self.spec))
        metrics = await self.learn(clock, lambda: self._train(step, batch, sampled))
        return StepResult(metrics | sampling_metrics(sampled.groups, batch), sampled_tokens(sampled), sampled, batch)

    async def _train(self, step: int, batch: PolicyBatch, sampled: Any) -> dict[str, float]:
        """All optimiser steps on the batch; metrics are their means. Nothing to learn from: no step is taken."""
        count = len(batch.plan.steps)
        if not count:
            self.journal.note(f"step {step}: no group has rewards that differ, so there is nothing to learn from")
            return {}
        per_batch = self.spec.grpo.optimizer_steps_per_batch * self.spec.grpo.epochs_per_batch
        rates = step_rates(self.spec.learner, step, self.total_steps, per_batch, count)
        arrays = [group.arrays for group in sampled.groups]
        return mean_metrics(await self.learner.train_policy(batch, arrays, self._loss(), rates, on_policy=count == 1))

    def _loss(self) -> PolicyLoss:
        low, high = self.spec.grpo.clip_range
        correction = self.spec.grpo.sampler_correction
        return PolicyLoss(low, high, self.spec.grpo.kl_coefficient, correction.mode, correction.cap)


def batch_settings(spec: GrpoJob) -> PolicyBatchSettings:
    """How batches are made, from the spec."""
    grpo = spec.grpo
    return replace(
        token_mean_settings(spec, optimizer_steps=grpo.optimizer_steps_per_batch, epochs=grpo.epochs_per_batch),
        loss_type=grpo.loss_type,
        scale_rewards=grpo.scale_rewards,
        filter_zero_std=grpo.filter_zero_std,
        filter_overlong=grpo.filter_overlong,
    )
