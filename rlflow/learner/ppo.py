"""PPO on a rank: values and KL of a batch, advantages whitened over all ranks, then the critic's and the policy's steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rlflow.algorithms.batch_plan import StepPlan
from rlflow.algorithms.gae import Moments, generalized_advantages, power_sums, token_rewards
from rlflow.algorithms.losses import PolicyLoss, ValueLoss
from rlflow.algorithms.policy_terms import kl_estimate
from rlflow.learner.learner import Scores
from rlflow.learner.process_group import sum_over_ranks
from rlflow.learner.roles import Roles
from rlflow.learner.sequences import TrainSequence
from rlflow.spec.algorithm import PpoSpec


@dataclass(frozen=True, slots=True)
class Estimates:
    """What a batch teaches policy and critic, by sequence, float32 [n]."""

    advantages: Scores
    """Whitened over the whole batch, all ranks together."""
    returns: Scores
    metrics: dict[str, float]
    """Of the whole batch, equal on every rank."""


def train_ppo(
    roles: Roles,
    steps: Sequence[StepPlan],
    sequences: Mapping[int, TrainSequence],
    rewards: Mapping[int, float],
    spec: PpoSpec,
    policy_rates: Sequence[float],
    critic_rates: Sequence[float],
) -> list[dict[str, float]]:
    """The optimiser steps of one batch (collective): all of the critic's, then all of the policy's. Metrics of each.

    `rewards`: of each sequence, at its last token. No `policy_rates`: only the critic is trained (its warm-up).
    """
    policy = roles.hold("policy")
    logprobs = policy.score_all(steps, sequences)
    reference = policy.score_all(steps, sequences, reference=True) if spec.kl_coefficient > 0 else None
    critic = roles.hold("critic")
    values = critic.score_all(steps, sequences)
    own = critic.own_sequences(steps)
    estimates = _estimate(spec, rewards, values, logprobs, reference, own, critic.device)
    critic_metrics = [
        critic.train_step(
            step,
            sequences,
            ValueLoss(spec.value_clip_range),
            learning_rate=rate,
            known={"old_values": values, "returns": estimates.returns},
        )
        for step, rate in zip(steps, critic_rates, strict=True)
    ]
    policy = roles.hold("policy")
    advantageous = {i: _with_advantages(sequences[i], estimates.advantages[i]) for i in sequences}
    policy_loss = PolicyLoss(*spec.clip_range)
    policy_metrics = [
        policy.train_step(step, advantageous, policy_loss, learning_rate=rate, known={"old_logprobs": logprobs})
        for step, rate in zip(steps, policy_rates, strict=False)
    ]
    named = [_of_critic(metrics) | estimates.metrics for metrics in critic_metrics]
    return [a | b for a, b in zip(named, policy_metrics or [{}] * len(named), strict=True)]


def _estimate(
    spec: PpoSpec,
    rewards: Mapping[int, float],
    values: Scores,
    logprobs: Scores,
    reference: Scores | None,
    own: set[int],
    device: torch.device,
) -> Estimates:
    def moments(of: Scores) -> Moments:
        return Moments.from_sums(sum_over_ranks(power_sums(of[i] for i in sorted(own)), device))

    kl = {
        i: torch.zeros_like(values[i]) if reference is None else kl_estimate(logprobs[i], reference[i], spec.kl_estimator)
        for i in values
    }
    earned = {i: token_rewards(rewards[i], kl[i], spec.kl_coefficient) for i in values}
    if spec.whiten_rewards:
        of_rewards = moments(earned)
        earned = {i: of_rewards.whiten(part, shift_mean=False) for i, part in earned.items()}
    advantages = {i: generalized_advantages(earned[i], values[i], spec.gamma, spec.gae_lambda) for i in values}
    returns = {i: advantages[i] + values[i] for i in values}
    of_advantages, of_returns = moments(advantages), moments(returns)
    metrics = {
        "advantage_mean": of_advantages.mean,
        "advantage_std": of_advantages.variance**0.5,
        "returns_mean": of_returns.mean,
        "returns_std": of_returns.variance**0.5,
        "values_mean": moments(values).mean,
    }
    if of_returns.variance > 0:  # an advantage is the error of the value
        metrics["explained_variance"] = 1 - of_advantages.variance / of_returns.variance
    if reference is not None:
        metrics["kl_mean"] = moments(kl).mean
    return Estimates({i: of_advantages.whiten(part) for i, part in advantages.items()}, returns, metrics)


def _with_advantages(sequence: TrainSequence, advantages_n: Tensor) -> TrainSequence:
    advantages_L = np.zeros(len(sequence.token_ids), np.float32)
    advantages_L[sequence.trained] = advantages_n.numpy()
    return replace(sequence, advantage=advantages_L)


def _of_critic(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name if name.startswith("value_") else f"value_{name}": value for name, value in metrics.items()}
