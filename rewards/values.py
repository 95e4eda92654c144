"""What counts as a reward's value."""

import math
from numbers import Real
from typing import Any

from rlflow.errors import RewardError


def read_value(value: Any) -> float | None:
    """A finite float, or None for "leave this sample out".

    bool, int, float, fractions, NumPy scalars and zero-dimensional arrays and tensors are numbers. Raises
    RewardError for everything else, NaN and infinities.
    """
    if value is None:
        return None
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    if not isinstance(value, Real):
        raise RewardError(f"returned {_shorten(value)}, expected a number or None")
    number = float(value)
    if not math.isfinite(number):
        raise RewardError(f"returned {number}, expected a finite number or None")
    return number


def read_batch(values: Any, num_samples: int) -> list[Any]:
    """The entries of a batched reward's result, not yet checked one by one.

    Lists, tuples and one-dimensional arrays and tensors are accepted. Raises RewardError if there is not
    exactly one entry per sample.
    """
    if getattr(values, "ndim", None) == 1:
        values = values.tolist()
    if not isinstance(values, list | tuple):
        raise RewardError(f"returned {_shorten(values)}, expected a list of {num_samples} numbers or None")
    if len(values) != num_samples:
        raise RewardError(f"returned {len(values)} values for {num_samples} samples")
    return list(values)


def _shorten(value: Any) -> str:
    shown = repr(value)
    return f"{type(value).__name__} {shown if len(shown) <= 80 else shown[:77] + '...'}"
