"""The critic's clipped loss."""

import numpy as np
import pytest
import torch

from rlflow.algorithms.losses import ValueInputs, ValueLoss


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def inputs(values, old, returns):
    return ValueInputs(
        values_N=values,
        last_values_S=values[-1:],
        counts=(len(values),),
        weights_N=torch.ones_like(values),
        old_values_N=old,
        returns_N=returns,
    )


def test_golden_numbers():
    # 1: inside the range; 2: clipped to 1.2, further from the return; 3: clipped to 1.2, nearer than the value itself
    losses, means = ValueLoss(0.2)(inputs(tensor(1.1, 2.0, 2.0), tensor(1, 1, 1), tensor(2, 2.1, 1)))
    assert losses.tolist() == pytest.approx([0.5 * 0.9**2, 0.5 * 0.9**2, 0.5])
    total, count = means["value_clipped_fraction"]
    assert float(total / count) == pytest.approx(1 / 3)


def test_without_clipping_it_is_half_the_squared_error():
    losses, means = ValueLoss(None)(inputs(tensor(3, 0), tensor(0, 0), tensor(1, 0.5)))
    assert losses.tolist() == [2.0, 0.125]
    assert means == {}


def test_equal_to_the_plain_formula_and_finite_differences():
    random = np.random.default_rng(1)
    values, old, returns = (random.normal(size=40) for _ in range(3))

    def plain(v):
        clipped = np.minimum(np.maximum(v, old - 0.3), old + 0.3)
        return 0.5 * np.maximum((v - returns) ** 2, (clipped - returns) ** 2)

    moved = torch.from_numpy(values).requires_grad_()
    losses, _ = ValueLoss(0.3)(inputs(moved, torch.from_numpy(old), torch.from_numpy(returns)))
    np.testing.assert_allclose(losses.detach().numpy(), plain(values), rtol=0, atol=1e-6)
    losses.sum().backward()
    slopes = (plain(values + 1e-6) - plain(values - 1e-6)) / 2e-6
    np.testing.assert_allclose(moved.grad.numpy(), slopes, rtol=0, atol=1e-6)
    assert 0 < (slopes == 0).sum() < 40, "some values are held by the clipping, some are not"
