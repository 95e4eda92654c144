"""From the spec to the objective and the batch."""

import pytest

from rlflow.algorithms.losses import PolicyLoss
from rlflow.loops.grpo import batch_settings, policy_loss
from tests.unit.loops.test_requests import job


def test_the_defaults_are_those_of_the_loss():
    assert policy_loss(job()) == PolicyLoss()


def test_every_setting_reaches_the_loss():
    fields = {
        "epsilon_low": 0.1,
        "epsilon_high": 0.3,
        "importance_sampling": "sequence",
        "dual_clip": 3,
        "kl_coefficient": 0.5,
        "kl_estimator": "k2",
        "entropy_coefficient": 0.01,
        "top_entropy_quantile": 0.2,
        "sampler_correction": {"mode": "mask", "cap": 1.5},
    }
    assert policy_loss(job(grpo=fields)) == PolicyLoss(
        clip_low=0.9,
        clip_high=1.3,
        kl_coefficient=0.5,
        correction="mask",
        correction_cap=1.5,
        importance_sampling="sequence",
        dual_clip=3,
        kl_estimator="k2",
        entropy_coefficient=0.01,
        top_entropy_quantile=0.2,
    )
    sapo = policy_loss(job(grpo={"loss_type": "sapo", "sapo_tau_positive": 2, "sapo_tau_negative": 3}))
    assert sapo == PolicyLoss(surrogate="sapo", tau_positive=2, tau_negative=3)


def test_a_penalty_in_the_reward_is_none_in_the_loss():
    spec = job(grpo={"kl_coefficient": 0.5, "kl_in": "reward", "kl_estimator": "k1"})
    assert policy_loss(spec).kl_coefficient == 0
    assert batch_settings(spec).kl_in_reward == 0.5
    assert batch_settings(job(grpo={"kl_coefficient": 0.5})).kl_in_reward == 0


@pytest.mark.parametrize(
    ("estimator", "scale"),
    [
        ("grpo", "group"),
        ("rloo", "none"),
        ("reinforce_plus_plus", "batch"),
        ("reinforce_plus_plus_baseline", "batch"),
        ("gdpo", "batch"),
    ],
)
def test_what_advantages_are_divided_by_unless_said(estimator, scale):
    settings = batch_settings(job(grpo={"advantage_estimator": estimator}))
    assert (settings.advantage_estimator, settings.scale_rewards) == (estimator, scale)


def test_weights_of_the_rewards():
    rewards = [{"type": "accuracy", "weight": 2}, {"type": "format"}]
    assert batch_settings(job(rewards=rewards)).reward_weights == (2, 1)
