"""The generalised Jensen-Shannon divergence: by hand, against the formula in numpy, and its gradient."""

import math

import numpy as np
import pytest
import torch

from rlflow.algorithms.distillation import DistillationInputs, LikeliestTokensJsd, with_rest
from rlflow.algorithms.jsd import generalized_jsd

BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]


def distributions(rows=7, size=11):
    random = np.random.default_rng(5)
    return random.dirichlet(np.ones(size), rows), random.dirichlet(np.ones(size), rows)


def plain(student, teacher, beta):
    """The paper's formula on probabilities."""

    def kl(p, q):
        return (p * np.log(p / q)).sum(-1)

    if beta in (0, 1):
        return kl(teacher, student) if beta == 0 else kl(student, teacher)
    mixture = beta * teacher + (1 - beta) * student
    return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)


def test_golden_numbers():
    student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    assert float(generalized_jsd(student, teacher, 0)) == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert float(generalized_jsd(student, teacher, 1)) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    half = 0.5 * (0.25 * math.log(2 / 3) + 0.75 * math.log(1.2)) + 0.5 * (0.5 * math.log(4 / 3) + 0.5 * math.log(0.8))
    assert float(generalized_jsd(student, teacher, 0.5)) == pytest.approx(half)


@pytest.mark.parametrize("beta", BETAS)
def test_equal_to_the_formula_and_to_finite_differences(beta):
    student, teacher = distributions()
    log_student, log_teacher = torch.from_numpy(np.log(student)), torch.from_numpy(np.log(teacher))
    moved = log_student.clone().requires_grad_()
    losses = generalized_jsd(moved.log_softmax(-1), log_teacher, beta)
    np.testing.assert_allclose(losses.detach().numpy(), plain(student, teacher, beta), rtol=0, atol=1e-6)
    losses.sum().backward()
    for row, column in ((0, 0), (3, 7), (6, 10)):
        shift = np.zeros_like(student)
        shift[row, column] = 1e-6

        def at(shift):
            logits = np.exp(np.log(student) + shift)
            return plain(logits / logits.sum(-1, keepdims=True), teacher, beta).sum()

        assert float(moved.grad[row, column]) == pytest.approx((at(shift) - at(-shift)) / 2e-6, abs=1e-6)


@pytest.mark.parametrize("beta", BETAS)
def test_equal_distributions_do_not_diverge(beta):
    student = torch.from_numpy(np.log(distributions()[0]))
    assert generalized_jsd(student, student, beta).abs().max() < 1e-12


@pytest.mark.parametrize("beta", BETAS)
def test_what_is_left_is_one_more_token(beta):
    student, teacher = distributions()
    top = np.argsort(-teacher)[:, :4]
    of_student, of_teacher = (np.take_along_axis(p, top, -1) for p in (student, teacher))
    losses, means = LikeliestTokensJsd(beta)(DistillationInputs(*(torch.from_numpy(np.log(p)) for p in (of_student, of_teacher))))
    closed = [np.concatenate([p, 1 - p.sum(-1, keepdims=True)], -1) for p in (of_student, of_teacher)]
    np.testing.assert_allclose(losses.numpy(), plain(*closed, beta), rtol=0, atol=1e-6)
    assert (losses.numpy() <= plain(student, teacher, beta) + 1e-9).all(), "merging tokens never makes them differ more"
    total, count = means["teacher_rest_mean"]
    assert float(total / count) == pytest.approx((1 - of_teacher.sum(-1)).mean())


def test_nothing_left_stays_finite():
    nearly_all = torch.tensor([[0.0, -30.0]], dtype=torch.float32).requires_grad_()
    losses = generalized_jsd(with_rest(nearly_all), with_rest(torch.tensor([[-1.0, -0.5]])), 0.0)
    losses.sum().backward()
    assert torch.isfinite(losses).all() and torch.isfinite(nearly_all.grad).all()
