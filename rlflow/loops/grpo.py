"""Group-relative policy optimisation: sample groups, score them, train on their advantages, send the weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlflow.algorithms.losses import PolicyLoss
from rlflow.algorithms.policy_batch import PolicyBatchSettings, ScoredGroup, plan_policy_batch, plan_scoring, with_kl
from rlflow.cluster.handles import CheckpointHandle, HandOverHandle, PolicyLearner, PromptTable, SamplerHandle
from rlflow.data.order import RowOrder
from rlflow.loops.batch_metrics import check_failures, completion_rows, evaluation_metrics, sampling_metrics
from rlflow.loops.dynamic_sampling import SampledStep, check_useful
from rlflow.loops.requests import evaluation_requests, training_requests
from rlflow.loops.schedule import learning_rate
from rlflow.loops.state import LoopState
from rlflow.observe.clock import StepClock
from rlflow.observe.journal import Journal
from rlflow.spec.jobs import GrpoJob


@dataclass(slots=True)
class GrpoLoop:
    """The parts of a GRPO run."""

    spec: GrpoJob
    total_steps: int
    learner: PolicyLearner
    sampler: SamplerHandle
    hand_over: HandOverHandle
    prompts: PromptTable
    held_out: PromptTable
    order: RowOrder
    checkpoints: CheckpointHandle
    journal: Journal
    state: LoopState

    async def run(self) -> None:
        """Train to the last step."""
        self.journal.begin(self.total_steps)
        self._say_what_to_know()
        await self.hand_over.to_sampling()
        if self.state.step == 0:
            await self._first_evaluation()
        while self.state.step < self.total_steps:
            step, clock = self.state.step + 1, self.journal.clock()
            version = self.hand_over.weight_version
            with clock.phase("generate"):
                sampled = await self._sample(step)
            clock.move("generate", "reward", sampled.reward_seconds)
            with clock.phase("hand_over"):
                await self.hand_over.to_learning()
            with clock.phase("learn"):
                scored, metrics = await self._with_kl(sampled)
                batch = plan_policy_batch(scored, batch_settings(self.spec))
                metrics |= await self._train(step, batch, sampled)
                if self.spec.grpo.reference_every and step % self.spec.grpo.reference_every == 0:
                    await self.learner.refresh_reference()
            with clock.phase("hand_over"):
                await self.hand_over.to_sampling()
            moves = self.hand_over.metrics()
            clock.move("hand_over", "sync", moves.pop("sync_seconds", 0.0))
            self.state = LoopState(step, self.state.cursor + sampled.num_prompts, self.hand_over.weight_version)
            metrics |= sampling_metrics(sampled.groups, batch) | moves
            metrics |= {"weight_version": version, "sampling_rounds": sampled.num_rounds}
            await self._finish_step(clock, sampled, batch, metrics)

    def _say_what_to_know(self) -> None:
        if not self.spec.rollout.samples_model_distribution:
            self.journal.note(
                "rollout.top_p < 1 or rollout.top_k > 0: the sampler's log-probabilities are renormalised, so ratios use the "
                "learner's own, and the difference between the two is not measured"
            )
        grpo = self.spec.grpo
        if grpo.kl_coefficient and grpo.kl_in == "loss" and grpo.kl_estimator == "k1":
            self.journal.note(
                "grpo.kl_estimator: k1 with grpo.kl_in: loss has a gradient of zero on average and holds nothing back; "
                "use k2 or k3, or grpo.kl_in: reward"
            )

    async def _sample(self, step: int) -> SampledStep:
        """The step's groups. With dynamic sampling further prompts replace groups without different rewards, up to a limit; a
        step takes as many prompts from the data as it samples, and carries none over.
        """
        spec, sampled = self.spec, SampledStep()
        while missing := min(spec.prompts_per_step - sampled.num_useful, spec.max_prompts_per_step - sampled.num_prompts):
            rows = self.order.rows(self.state.cursor + sampled.num_prompts, missing)
            requests = training_requests(spec, step, rows, self.prompts.prompt_ids, first_slot=sampled.num_prompts)
            batch = await self.sampler.sample(requests, self.prompts.row, self.hand_over.recover)
            check_failures(batch.groups, spec.reward_pool.failure_threshold, self.journal.note)
            sampled.add(batch.groups, batch.reward_seconds)
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

    async def _train(self, step: int, batch: Any, sampled: SampledStep) -> dict[str, float]:
        """All optimiser steps on the batch; metrics are their means. Nothing to learn from: no step is taken."""
        if not batch.plan.steps:
            self.journal.note(f"step {step}: no group has rewards that differ, so there is nothing to learn from")
            return {}
        per_batch = self.spec.grpo.optimizer_steps_per_batch * self.spec.grpo.epochs_per_batch
        first = (step - 1) * per_batch
        rates = [learning_rate(self.spec.learner, first + i, self.total_steps * per_batch) for i in range(len(batch.plan.steps))]
        on_policy = len(batch.plan.steps) == 1
        arrays = [group.arrays for group in sampled.groups]
        return _means(await self.learner.train_policy(batch, arrays, policy_loss(self.spec), rates, on_policy=on_policy))

    async def _finish_step(self, clock: StepClock, sampled: SampledStep, batch: Any, metrics: dict[str, float]) -> None:
        step, every = self.state.step, self.spec.evaluate.every
        is_last = step == self.total_steps
        if self.spec.run.log_completions_every and (is_last or step % self.spec.run.log_completions_every == 0):
            texts = await self.sampler.texts(sampled.groups)
            self.journal.completions(step, completion_rows(sampled.groups, batch, texts, self.prompts.row))
        if is_last or (every and step % every == 0):
            with clock.phase("eval"):
                metrics |= await self._evaluate()
        if self.checkpoints.is_due(step, metrics, is_last=is_last):
            with clock.phase("checkpoint"):
                await self.checkpoints.save(step, self.state.to_dict(), metrics)
        tokens = sum(g.summary.prompt_tokens * len(g.scores) + sum(g.summary.completion_tokens) for g in sampled.groups)
        learned = sum(sample.num_tokens for sample in batch.samples)
        metrics |= {"learn_tokens": learned, "tokens_per_second": tokens / clock.metrics()["step_seconds"]}
        self.journal.step(step, {**metrics, "epoch": self.order.epoch(self.state.cursor)}, clock)

    async def _first_evaluation(self) -> None:
        clock = self.journal.clock()
        with clock.phase("eval"):
            metrics = await self._evaluate()
        self.checkpoints.check_evaluation(metrics)
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
        advantage_estimator=spec.grpo.advantage_estimator,
        reward_weights=tuple(reward.weight for reward in spec.rewards),
        kl_in_reward=spec.grpo.kl_coefficient if spec.grpo.kl_in == "reward" else 0.0,
    )


def _means(steps: list[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for step in steps for name in step)
    return {name: sum(known := [s[name] for s in steps if name in s]) / len(known) for name in names}
