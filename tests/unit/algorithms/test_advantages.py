import random
import statistics

import pytest

from rlflow.algorithms.advantages import group_advantages, has_spread


def test_group_scale_golden_numbers():
    [advantages] = group_advantages([[1, 0, 0, 0]], "group")
    assert advantages == pytest.approx([1.49970, -0.49990, -0.49990, -0.49990], abs=5e-6)


def test_no_scale_only_subtracts_the_mean():
    assert group_advantages([[1, 0, 0, 0], [3, 5]], "none") == [[0.75, -0.25, -0.25, -0.25], [-1, 1]]


def test_batch_scale_divides_all_groups_by_one_number():
    first, second = group_advantages([[1, 0], [4, 0]], "batch")
    # rewards 1, 0, 4, 0: mean 1.25, squared deviations 0.0625 + 1.5625 + 7.5625 + 1.5625 = 10.75, over 3
    std = (10.75 / 3) ** 0.5
    assert first == pytest.approx([0.5 / (std + 1e-4), -0.5 / (std + 1e-4)])
    assert second == pytest.approx([2 / (std + 1e-4), -2 / (std + 1e-4)])


def test_a_sample_without_reward_is_left_out_of_the_statistics():
    with_gap = group_advantages([[1, None, 0, 0, 0]], "group")[0]
    without = group_advantages([[1, 0, 0, 0]], "group")[0]
    assert with_gap == [without[0], None, *without[1:]]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_groups_that_teach_nothing_have_no_advantage(scale):
    groups = [[None, None], [None, 2.5], [0.1, 0.1, 0.1]]
    nothing, single, equal = group_advantages(groups, scale)
    assert nothing == [None, None]
    assert single == [None, 0.0]
    assert equal == pytest.approx([0, 0, 0], abs=1e-9)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_do_not_depend_on_an_offset_and_sum_to_zero(scale):
    chance = random.Random(1)
    rewards = [[chance.gauss(0, 1) for _ in range(chance.randint(2, 8))] for _ in range(5)]
    advantages = group_advantages(rewards, scale)
    moved = group_advantages([[r + 7 for r in group] for group in rewards], scale)
    for group, group_moved in zip(advantages, moved, strict=True):
        assert group_moved == pytest.approx(group)
        assert sum(group) == pytest.approx(0, abs=1e-9)


def test_group_scale_has_unit_deviation():
    [advantages] = group_advantages([[0, 10, 20, 70]], "group")
    assert statistics.stdev(advantages) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("rewards", "spread"),
    [([1, 0], True), ([1, 1], False), ([1, None], False), ([], False), ([None], False), ([1, 1 + 1e-9], False)],
)
def test_spread(rewards, spread):
    assert has_spread(rewards) is spread
