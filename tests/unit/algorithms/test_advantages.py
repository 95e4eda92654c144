import random
import statistics

import numpy as np
import pytest

from rlflow.algorithms.advantages import gdpo_advantages, has_spread, policy_advantages


def test_group_scale_golden_numbers():
    [advantages] = policy_advantages([[1, 0, 0, 0]], "grpo", "group")
    assert advantages == pytest.approx([1.49970, -0.49990, -0.49990, -0.49990], abs=5e-6)


def test_no_scale_only_subtracts_the_mean():
    assert policy_advantages([[1, 0, 0, 0], [3, 5]], "grpo", "none") == [[0.75, -0.25, -0.25, -0.25], [-1, 1]]


def test_batch_scale_divides_all_groups_by_one_number():
    first, second = policy_advantages([[1, 0], [4, 0]], "grpo", "batch")
    # rewards 1, 0, 4, 0: mean 1.25, squared deviations 0.0625 + 1.5625 + 7.5625 + 1.5625 = 10.75, over 3
    std = (10.75 / 3) ** 0.5
    assert first == pytest.approx([0.5 / (std + 1e-4), -0.5 / (std + 1e-4)])
    assert second == pytest.approx([2 / (std + 1e-4), -2 / (std + 1e-4)])


def test_a_sample_without_reward_is_left_out_of_the_statistics():
    with_gap = policy_advantages([[1, None, 0, 0, 0]], "grpo", "group")[0]
    without = policy_advantages([[1, 0, 0, 0]], "grpo", "group")[0]
    assert with_gap == [without[0], None, *without[1:]]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_groups_that_teach_nothing_have_no_advantage(scale):
    groups = [[None, None], [None, 2.5], [0.1, 0.1, 0.1]]
    nothing, single, equal = policy_advantages(groups, "grpo", scale)
    assert nothing == [None, None]
    assert single == [None, 0.0]
    assert equal == pytest.approx([0, 0, 0], abs=1e-9)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_do_not_depend_on_an_offset_and_sum_to_zero(scale):
    chance = random.Random(1)
    rewards = [[chance.gauss(0, 1) for _ in range(chance.randint(2, 8))] for _ in range(5)]
    advantages = policy_advantages(rewards, "grpo", scale)
    moved = policy_advantages([[r + 7 for r in group] for group in rewards], "grpo", scale)
    for group, group_moved in zip(advantages, moved, strict=True):
        assert group_moved == pytest.approx(group)
        assert sum(group) == pytest.approx(0, abs=1e-9)


def test_group_scale_has_unit_deviation():
    [advantages] = policy_advantages([[0, 10, 20, 70]], "grpo", "group")
    assert statistics.stdev(advantages) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("rewards", "spread"),
    [([1, 0], True), ([1, 1], False), ([1, None], False), ([], False), ([None], False), ([1, 1 + 1e-9], False)],
)
def test_spread(rewards, spread):
    assert has_spread(rewards) is spread


# ---- other estimators


def test_rloo_golden_numbers():
    assert policy_advantages([[1, 0, 0, 0]], "rloo", "none")[0] == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3])
    # 1 - mean(3, 8), 3 - mean(1, 8), 8 - mean(1, 3)
    assert policy_advantages([[1, 3, None, 8]], "rloo", "none")[0] == pytest.approx([-4.5, -1.5, None, 6.0])
    assert policy_advantages([[None, 2.5]], "rloo", "none") == [[None, 0.0]]


def test_reinforce_plus_plus_golden_numbers():
    # rewards 1, 0, 4, 0: mean 1.25, variance 10.75 / 3
    std = (10.75 / 3) ** 0.5 + 1e-4
    found = policy_advantages([[1, 0], [4, None, 0]], "reinforce_plus_plus", "batch")
    assert found[0] == pytest.approx([-0.25 / std, -1.25 / std])
    assert found[1] == pytest.approx([2.75 / std, None, -1.25 / std])


def test_reinforce_plus_plus_needs_no_group():
    assert policy_advantages([[1], [0], [0], [1]], "reinforce_plus_plus", "batch") == [
        [pytest.approx(0.866025, abs=1e-3)] if good else [pytest.approx(-0.866025, abs=1e-3)] for good in (1, 0, 0, 1)
    ]


def test_reinforce_plus_plus_with_baseline_golden_numbers():
    # differences 0.5, -0.5, 2, -2: variance 8.5 / 3
    std = (8.5 / 3) ** 0.5 + 1e-4
    found = policy_advantages([[1, 0], [4, 0]], "reinforce_plus_plus_baseline", "batch")
    assert found == [pytest.approx([0.5 / std, -0.5 / std]), pytest.approx([2 / std, -2 / std])]


def test_gdpo_golden_numbers():
    # One group, rewards (1, 0) and (0, 10) of two samples, weights 1 and 2: normalised to +-1 / sqrt 2, so sums of
    # (1 - 2) / sqrt 2 and (-1 + 2) / sqrt 2, which the batch normalises to -+1 / sqrt 2 again.
    [advantages] = gdpo_advantages([[(1, 0), (0, 10)]], [1.0, 2.0])
    assert advantages == pytest.approx([-(0.5**0.5), 0.5**0.5], abs=1e-4)


def test_gdpo_does_not_drown_a_small_reward():
    together = policy_advantages([[100.1, 100.0, 0.1, 0.0]], "grpo", "group")[0]
    apart = gdpo_advantages([[(100, 0.1), (100, 0.0), (0, 0.1), (0, 0.0)]], [1.0, 1.0])[0]
    assert together[1] == pytest.approx(together[0], abs=0.01)
    assert apart == pytest.approx([apart[0], 0, 0, -apart[0]], abs=1e-6)
    assert apart[0] > 1


def test_gdpo_leaves_a_missing_reward_out_of_its_sample_alone():
    groups = [[(1, None), (0, 4), (0, 2)], [(None, None), (3, 1), (None, 0)]]
    found = gdpo_advantages(groups, [1.0, 1.0])
    first = [2 / 3 / (1 / 3) ** 0.5, -1 / 3 / (1 / 3) ** 0.5 + 0.5**0.5, -1 / 3 / (1 / 3) ** 0.5 - 0.5**0.5]
    sums = [*first, 0.0 + 0.5**0.5, -(0.5**0.5)]  # a lone 3 is its own mean
    mean, std = statistics.fmean(sums), statistics.stdev(sums) + 1e-4
    expected = [(total - mean) / std for total in sums]
    assert found == [pytest.approx(expected[:3]), [None, *(pytest.approx(value) for value in expected[3:])]]


@pytest.mark.parametrize(
    ("estimator", "scale"),
    [
        ("grpo", "group"),
        ("grpo", "batch"),
        ("grpo", "none"),
        ("rloo", "none"),
        ("rloo", "group"),
        ("rloo", "batch"),
        ("reinforce_plus_plus", "batch"),
        ("reinforce_plus_plus_baseline", "batch"),
    ],
)
def test_equal_to_plain_formulas(estimator, scale):
    """The same in numpy, for groups without gaps."""
    rewards = np.random.default_rng(5).normal(size=(6, 4))
    others = (rewards.sum(1, keepdims=True) - rewards) / 3
    baseline = {"rloo": others, "reinforce_plus_plus": rewards.mean()}.get(estimator, rewards.mean(1, keepdims=True))
    plain = rewards - baseline
    if scale == "group":
        plain = plain / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)
    elif scale == "batch":
        plain = plain / ((plain if "baseline" in estimator else rewards).std(ddof=1) + 1e-4)
    np.testing.assert_allclose(policy_advantages(rewards.tolist(), estimator, scale), plain, atol=1e-6)


def test_gdpo_equals_plain_formulas():
    rewards = np.random.default_rng(6).normal(size=(5, 4, 3)) * [1, 10, 0.1]
    weights = np.array([1.0, 0.5, 2.0])
    apart = (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, ddof=1, keepdims=True) + 1e-8)
    sums = apart @ weights
    plain = (sums - sums.mean()) / (sums.std(ddof=1) + 1e-4)
    np.testing.assert_allclose(gdpo_advantages(rewards.tolist(), weights.tolist()), plain, atol=1e-6)
