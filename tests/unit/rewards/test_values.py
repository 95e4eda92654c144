from fractions import Fraction

import numpy
import pytest
import torch

from rlflow.errors import RewardError
from rlflow.rewards.values import read_batch, read_value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, 1.0),
        (2, 2.0),
        (0.25, 0.25),
        (Fraction(1, 4), 0.25),
        (numpy.float32(0.25), 0.25),
        (numpy.int64(3), 3.0),
        (numpy.bool_(True), 1.0),
        (numpy.array(0.25), 0.25),
        (torch.tensor(0.25), 0.25),
    ],
)
def test_numbers(value, expected):
    assert read_value(value) == expected
    assert value is None or type(read_value(value)) is float


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "returned nan, expected a finite number"),
        (float("-inf"), "returned -inf, expected a finite number"),
        ("1.0", "returned str '1.0', expected a number or None"),
        ([1.0], "returned list"),
        (numpy.array([1.0]), "returned ndarray"),
        (torch.tensor(float("nan")), "returned nan"),
        ({}, "returned dict"),
        (1j, "returned complex"),
    ],
)
def test_nonsense(value, message):
    with pytest.raises(RewardError, match=message):
        read_value(value)


@pytest.mark.parametrize("values", [[1, 2, None], (1, 2, None), numpy.array([1, 2, 3]), torch.tensor([1.0, 2.0, 3.0])])
def test_batches(values):
    assert read_batch(values, 3)[:2] == [1, 2]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], "returned 1 values for 3 samples"),
        (1.0, "returned float 1.0, expected a list of 3 numbers"),
        ({"a": 1}, "returned dict"),
        ("abc", "returned str"),
        (None, "returned NoneType None, expected a list"),
    ],
)
def test_batches_of_a_wrong_shape(values, message):
    with pytest.raises(RewardError, match=message):
        read_batch(values, 3)
