"""Group-relative policy optimisation: sample groups, score them, train on their advantages, send the weights."""

from dataclasses import dataclass
from typing import Any

from rlflow.algorithms.losses import PolicyLoss
from rlflow.algorithms.policy_batch import (
    PolicyBatch,
    PolicyBatchSettings,
    ScoredGroup,
    plan_policy_batch,
    plan_scoring,
    with_kl,
)
from rlflow.cluster.handles import PolicyLearner
from rlflow.loops.batch_metrics import sampling_metrics
from rlflow.loops.dynamic_sampling import SampledStep, check_useful
from rlflow.loops.sampling import SamplingLoop, StepResult, mean_metrics, sampled_tokens, step_rates
from rlflow.observe.clock import StepClock
from rlflow.spec.jobs import GrpoJob


@dataclass(slots=True)
class GrpoLoop(SamplingLoop):
    """A GRPO run."""

    spec: GrpoJob
    learner: PolicyLearner

    async def take_step(self, step: int, rows: list[int], clock: StepClock) -> StepResult:
        """Sample, train on the groups' advantages, send the weights."""
        sampled = await self._sample(step, rows, clock)
        batches: list[PolicyBatch] = []

        async def train() -> dict[str, float]:
            scored, metrics = await self._with_kl(sampled)
            batches.append(plan_policy_batch(scored, batch_settings(self.spec)))
            metrics |= await self._train(step, batches[0], sampled)
            if self.spec.grpo.reference_every and step % self.spec.grpo.reference_every == 0:
                await self.learner.refresh_reference()
            return metrics

        metrics = await self.learn(clock, train)
        metrics |= sampling_metrics(sampled.groups, batches[0]) | {"sampling_rounds": sampled.num_rounds}
        return StepResult(metrics, sampled_tokens(sampled), sampled, batches[0], num_prompts=sampled.num_prompts)

    def warn(self) -> None:
        """Of settings that hold nothing back."""
        grpo = self.spec.grpo
        if grpo.kl_coefficient and grpo.kl_in == "loss" and grpo.kl_estimator == "k1":
            self.journal.note(
                "grpo.kl_estimator: k1 with grpo.kl_in: loss has a gradient of zero on average and holds nothing back; "
                "use k2 or k3, or grpo.kl_in: reward"
            )

    async def _sample(self, step: int, rows: list[int], clock: StepClock) -> SampledStep:
        """The step's groups. With dynamic sampling further prompts replace groups without different rewards, up to a limit; a
        step takes as many prompts from the data as it samples, and carries none over.
        """
        spec, sampled = self.spec, SampledStep()
        while rows:
            batch = await self.sample(step, rows, clock, first_slot=sampled.num_prompts)
            sampled.add(batch.groups, batch.reward_seconds)
            missing = min(spec.prompts_per_step - sampled.num_useful, spec.max_prompts_per_step - sampled.num_prompts)
            rows = self.order.rows(self.state.cursor + sampled.num_prompts, missing) if missing > 0 else []
        if spec.grpo.dynamic_sampling is not None:
            check_useful(sampled, step, spec, self.journal.note)
        return sampled

    async def _with_kl(self, sampled: SampledStep) -> tuple[list[ScoredGroup], dict[str, float]]:
        """The groups' scalars, with their KL from the reference if that lowers the reward."""
        groups, settings = [group.scored() for group in sampled.groups], batch_settings(self.spec)
        if not settings.kl_in_reward or not (batch := plan_scoring(groups, settings)).plan.steps:
            return groups, {}
        kl = await self.learner.sequence_kl(batch, [group.arrays for group in sampled.groups], self.spec.grpo.kl_estimator)
        tokens = sum(groups[sample.group].completion_tokens[sample.completion] for sample in batch.samples)
        return with_kl(groups, batch, kl), {"kl_mean": sum(kl.values()) / tokens}

    async def _train(self, step: int, batch: PolicyBatch, sampled: Any) -> dict[str, float]:
        """All optimiser steps on the batch; metrics are their means. Nothing to learn from: no step is taken."""
        count = len(batch.plan.steps)
        if not count:
            self.journal.note(f"step {step}: no group has rewards that differ, so there is nothing to learn from")
            return {}
        per_batch = self.spec.grpo.optimizer_steps_per_batch * self.spec.grpo.epochs_per_batch
        rates = step_rates(self.spec.learner, step, self.total_steps, per_batch, count)
        arrays = [group.arrays for group in sampled.groups]
        return mean_metrics(await self.learner.train_policy(batch, arrays, policy_loss(self.spec), rates, on_policy=count == 1))


def policy_loss(spec: GrpoJob) -> PolicyLoss:
    """The objective, from the spec. A KL penalty in the reward is none of the loss."""
    grpo, correction = spec.grpo, spec.grpo.sampler_correction
    low, high = grpo.clip_range
    return PolicyLoss(
        clip_low=low,
        clip_high=high,
        kl_coefficient=grpo.kl_coefficient if grpo.kl_in == "loss" else 0.0,
        correction=correction.mode,
        correction_cap=correction.cap,
        surrogate=grpo.surrogate,
        importance_sampling=grpo.importance_sampling,
        dual_clip=grpo.dual_clip,
        tau_positive=grpo.sapo_tau_positive,
        tau_negative=grpo.sapo_tau_negative,
        kl_estimator=grpo.kl_estimator,
        entropy_coefficient=grpo.entropy_coefficient,
        top_entropy_quantile=grpo.top_entropy_quantile,
    )


def batch_settings(spec: GrpoJob) -> PolicyBatchSettings:
    """How batches are made, from the spec."""
    return PolicyBatchSettings(
        loss_type=spec.grpo.average,
        scale_rewards=spec.grpo.scale,
        filter_zero_std=spec.grpo.drops_equal_rewards,
        filter_overlong=spec.grpo.filter_overlong,
        optimizer_steps=spec.grpo.optimizer_steps_per_batch,
        epochs=spec.grpo.epochs_per_batch,
        max_completion_tokens=spec.rollout.max_completion_tokens,
        num_ranks=spec.learner.num_ranks,
        micro_batch_tokens=spec.learner.micro_batch_tokens,
        packing=spec.learner.packing,
        sequence_parallel=spec.learner.sequence_parallel,
        advantage_estimator=spec.grpo.advantage_estimator,
        reward_weights=tuple(reward.weight for reward in spec.rewards),
        kl_in_reward=spec.grpo.kl_coefficient if spec.grpo.kl_in == "reward" else 0.0,
    )
