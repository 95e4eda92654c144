"""Proximal policy optimisation: sample, score, train the critic on returns and the policy on advantages, send the weights."""

from dataclasses import dataclass
from typing import Any

from rlflow.algorithms.policy_batch import PolicyBatch, plan_rewarded_batch
from rlflow.cluster.handles import PpoLearner
from rlflow.loops.batch_metrics import sampling_metrics
from rlflow.loops.sampling import SamplingLoop, StepResult, mean_metrics, sampled_tokens, step_rates, token_mean_settings
from rlflow.observe.clock import StepClock
from rlflow.spec.jobs import PpoJob


@dataclass(slots=True)
class PpoLoop(SamplingLoop):
    """A PPO run."""

    spec: PpoJob
    learner: PpoLearner

    async def take_step(self, step: int, rows: list[int], clock: StepClock) -> StepResult:
        """Sample, train critic and policy, send the weights."""
        ppo = self.spec.ppo
        settings = token_mean_settings(self.spec, optimizer_steps=ppo.optimizer_steps_per_batch, epochs=ppo.epochs_per_batch)
        sampled = await self.sample(step, rows, clock)
        batch = plan_rewarded_batch([group.scored() for group in sampled.groups], settings, ppo.missing_eos_penalty)
        metrics = await self.learn(clock, lambda: self._train(step, batch, sampled))
        return StepResult(metrics | sampling_metrics(sampled.groups, batch), sampled_tokens(sampled), sampled, batch)

    async def _train(self, step: int, batch: PolicyBatch, sampled: Any) -> dict[str, float]:
        """All optimiser steps on the batch; metrics are their means. No completion has a reward: no step is taken."""
        ppo, count = self.spec.ppo, len(batch.plan.steps)
        if not count:
            self.journal.note(f"step {step}: no completion has a reward, so there is nothing to learn from")
            return {}
        per_batch = ppo.optimizer_steps_per_batch * ppo.epochs_per_batch
        critic_rates = step_rates(self.spec.critic_learner, step, self.total_steps, per_batch, count)
        policy_step, policy_steps = step - ppo.critic_warmup_steps, self.total_steps - ppo.critic_warmup_steps
        policy_rates = step_rates(self.spec.learner, policy_step, policy_steps, per_batch, count) if policy_step > 0 else []
        arrays = [group.arrays for group in sampled.groups]
        return mean_metrics(await self.learner.train_ppo(batch, arrays, ppo, policy_rates, critic_rates))
