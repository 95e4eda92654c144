"""PPO's rewards, advantages and whitening: by hand, and against the formulas spelled out as double sums."""

import math

import numpy as np
import pytest
import torch

from rlflow.algorithms.advantages import terminal_reward
from rlflow.algorithms.gae import (
    Moments,
    generalized_advantages,
    power_sums,
    token_rewards,
)
from rlflow.algorithms.policy_terms import kl_estimate


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("has_ended", "penalty", "expected"), [(True, 1.0, 0.5), (False, 1.0, -0.5), (False, None, 0.5), (False, 0.0, 0.5)]
)
def test_a_completion_without_end_is_penalised(has_ended, penalty, expected):
    assert terminal_reward(0.5, has_ended=has_ended, missing_eos_penalty=penalty) == expected


def test_the_reward_lies_on_the_last_token_and_kl_on_all():
    assert token_rewards(2.0, tensor(0.5, 0.0, -1.0), 0.1).tolist() == pytest.approx([-0.05, 0.0, 2.1])
    assert token_rewards(2.0, tensor(0.5), 0.1).tolist() == pytest.approx([1.95])


def test_estimators_of_kl():
    policy, reference = tensor(math.log(0.5), math.log(0.1)), tensor(math.log(0.25), math.log(0.2))
    assert kl_estimate(policy, reference, "k1").tolist() == pytest.approx([math.log(2), -math.log(2)])
    assert kl_estimate(policy, reference, "k3").tolist() == pytest.approx([0.5 + math.log(2) - 1, 2 - math.log(2) - 1])


def test_both_estimators_have_the_divergence_as_their_mean():
    policy, reference = tensor(0.7, 0.2, 0.1).log(), tensor(0.2, 0.3, 0.5).log()
    divergence = float((policy.exp() * (policy - reference)).sum())
    for estimator in ("k1", "k3"):
        assert float((policy.exp() * kl_estimate(policy, reference, estimator)).sum()) == pytest.approx(divergence)


def test_golden_advantages():
    # deltas: 1 + .5*2 - 1 = 1; 0 + .5*4 - 2 = 0; 3 - 4 = -1; gamma lambda = 0.25
    advantages = generalized_advantages(tensor(1, 0, 3), tensor(1, 2, 4), gamma=0.5, lambda_=0.5)
    assert advantages.tolist() == [1 + 0.25 * (0 + 0.25 * -1), -0.25, -1.0]


@pytest.mark.parametrize(("gamma", "lambda_"), [(1.0, 0.95), (0.9, 0.5), (0.99, 0.0), (1.0, 1.0)])
def test_advantages_equal_the_double_sum(gamma, lambda_):
    random = np.random.default_rng(3)
    for length in (1, 2, 17):
        rewards, values = random.normal(size=length), random.normal(size=length)
        expected = []
        for t in range(length):
            total = 0.0
            for k in range(length - t):
                following = values[t + k + 1] if t + k + 1 < length else 0.0
                total += (gamma * lambda_) ** k * (rewards[t + k] + gamma * following - values[t + k])
            expected.append(total)
        ours = generalized_advantages(torch.from_numpy(rewards), torch.from_numpy(values), gamma, lambda_)
        np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=1e-6)
        if (gamma, lambda_) == (1.0, 1.0):
            rest = np.cumsum(rewards[::-1])[::-1]
            np.testing.assert_allclose(ours.numpy() + values, rest, atol=1e-9, err_msg="returns are what is still to come")


def test_whitened_values_are_those_of_the_whole_batch_however_it_is_split():
    values = torch.from_numpy(np.random.default_rng(0).normal(3, 2, 50)).float()
    whole = (values.double() - values.double().mean()) / (values.double().var(correction=1) + 1e-8).sqrt()
    for cuts in ([50], [10, 40], [1, 9, 20, 20]):
        moments = Moments.from_sums(torch.stack([power_sums([part]) for part in values.split(cuts)]).sum(0))
        torch.testing.assert_close(moments.whiten(values).double(), whole, rtol=0, atol=1e-6)
    kept = moments.whiten(values, shift_mean=False)
    assert float(kept.mean()) == pytest.approx(float(values.mean()), rel=1e-5)
    assert float(kept.std()) == pytest.approx(1, rel=1e-5)


def test_a_rank_without_values_adds_nothing():
    assert power_sums([]).tolist() == [0, 0, 0]


def test_one_value_is_whitened_to_zero():
    assert Moments.from_sums(power_sums([tensor(4.0)])).whiten(tensor(4.0)).tolist() == [0.0]
