"""When two trainings in bfloat16 agree: their steps, and their weights up to rounding."""

from typing import Any

import numpy as np
import pytest

from tests.integration.test_learner import LEARNING_RATE


def assert_agrees(result: Any, expected: Any) -> None:
    """Loss and gradient norm of each step, and every exported weight."""
    for step, wanted in zip(result.metrics, expected.metrics, strict=True):
        assert step["loss"] == pytest.approx(wanted["loss"], rel=0.05, abs=0.003)
        assert step["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=0.05, abs=0.003)
    for name, weight in expected.weights.items():
        beyond_rounding = np.abs(result.weights[name] - weight) - np.abs(weight) * 2**-8
        assert beyond_rounding.clip(0).mean() < 0.3 * LEARNING_RATE, name
