import math
from itertools import pairwise

import pytest

from rlflow.loops.schedule import learning_rate
from rlflow.spec.learner import LearnerSpec


def rates(total, peak=1.0, **schedule):
    spec = LearnerSpec.model_validate({"optimizer": {"learning_rate": peak}, "schedule": schedule})
    return [learning_rate(spec, step, total) for step in range(total)]


def test_constant():
    assert rates(3, peak=2e-5) == [2e-5] * 3


def test_warm_up_ends_with_the_full_rate():
    assert rates(6, peak=4.0, warmup_steps=4) == [1, 2, 3, 4, 4, 4]


def test_linear_decay_reaches_the_floor_at_the_last_step():
    assert rates(5, type="linear") == [1, 0.75, 0.5, 0.25, 0]
    assert rates(5, type="linear", min_learning_rate=0.2) == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])


def test_cosine_decay():
    half = math.sqrt(0.5)
    expected = [1, (1 + half) / 2, 0.5, (1 - half) / 2, 0]
    assert rates(5, type="cosine") == pytest.approx(expected, abs=1e-15)
    floored = rates(5, type="cosine", min_learning_rate=0.2)
    assert floored == pytest.approx([0.2 + 0.8 * rate for rate in expected])


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_decay_starts_from_the_peak_after_warm_up(shape):
    found = rates(8, type=shape, warmup_steps=3, min_learning_rate=0.1)
    assert found[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert found[-1] == pytest.approx(0.1)
    assert all(a > b for a, b in pairwise(found[3:]))


def test_warm_up_as_a_fraction_of_all_steps():
    assert rates(10, warmup_fraction=0.3) == rates(10, warmup_steps=3)


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine"])
def test_a_run_of_one_step_uses_the_peak(shape):
    assert rates(1, type=shape) == [1.0]


def test_a_warm_up_longer_than_the_run_only_climbs():
    assert rates(2, type="cosine", warmup_steps=4) == [0.25, 0.5]


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_steps_beyond_the_last_stay_at_the_floor(shape):
    spec = LearnerSpec.model_validate(
        {"optimizer": {"learning_rate": 1.0}, "schedule": {"type": shape, "min_learning_rate": 0.1}}
    )
    assert learning_rate(spec, 50, 10) == pytest.approx(0.1)
