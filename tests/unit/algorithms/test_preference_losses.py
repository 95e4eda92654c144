"""Losses on preferences: numbers by hand, an independent implementation, and gradients by finite differences."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from rlflow.algorithms.kto_loss import KtoLoss, mismatched_kl
from rlflow.algorithms.losses import LossInputs, ValueInputs
from rlflow.algorithms.pair_losses import (
    PAIR_LOSSES,
    ApoZero,
    Cpo,
    Hinge,
    Ipo,
    Orpo,
    PairObjective,
    Plugin,
    Robust,
    Sft,
    Sigmoid,
    Simpo,
)
from rlflow.algorithms.pairs import Pairs
from rlflow.algorithms.reward_model_loss import RewardModelLoss
from rlflow.errors import UserError

COUNTS = (3, 2, 1, 4, 2, 2)  # three pairs
GENERATOR = torch.Generator().manual_seed(3)
LOGPROBS = -2 * torch.rand(sum(COUNTS), generator=GENERATOR, dtype=torch.float64) - 0.05
REFERENCE = -2 * torch.rand(sum(COUNTS), generator=GENERATOR, dtype=torch.float64) - 0.05
LABELS = torch.tensor([1, 1, 0, 0, 1, 0], dtype=torch.float64)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def inputs(logprobs_N=LOGPROBS, reference: Any = REFERENCE, counts=COUNTS, labels_S=LABELS):
    count = len(logprobs_N)
    zeros_N = torch.zeros(count, dtype=torch.float64)
    return LossInputs(
        logprobs_N=logprobs_N,
        mean_logprobs_N=zeros_N,
        entropy_N=zeros_N,
        correct_N=zeros_N.bool(),
        counts=counts,
        weights_N=zeros_N,
        advantages_N=zeros_N,
        reference_logprobs_N=reference,
        labels_S=labels_S,
    )


def one_pair(chosen, rejected, reference_chosen, reference_rejected, tokens=(2, 4)):
    values = (chosen, rejected, reference_chosen, reference_rejected, *tokens)
    return Pairs(*(tensor(value) for value in values))


def means(result):
    return {name: float(total / count) for name, (total, count) in result[1].items()}


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


# ---- by hand

PAIR = one_pair(-4.0, -8.0, -6.0, -7.0)  # log-ratios 2 and -1; means -2 and -2; mean log-ratios 1 and -0.25
FIRM = one_pair(-1.0, -8.0, -6.0, -7.0)  # means -0.5 and -2


@pytest.mark.parametrize(
    ("loss", "pair", "value"),
    [
        (Sigmoid(0.1), PAIR, 0.554355),  # log(1 + exp(-0.3))
        (Sigmoid(0.1, label_smoothing=0.2), PAIR, 0.614355),  # 0.8 x 0.554355 + 0.2 x 0.854355
        (Robust(0.1, label_smoothing=0.2), PAIR, 0.454355),  # (0.8 x 0.554355 - 0.2 x 0.854355) / 0.6
        (Hinge(0.1), PAIR, 0.7),
        (Hinge(1.0), PAIR, 0.0),
        (Ipo(0.5), PAIR, 0.0625),  # (1.25 - 1)^2
        (ApoZero(0.1), PAIR, 0.925187),  # 1 - sigmoid(0.2) + sigmoid(-0.1)
        (Sft(), PAIR, 2.0),
        (Simpo(2.0, 1.0), FIRM, 0.126928),  # log(1 + exp(-(3 - 1)))
        (Simpo(2.0, 1.0, label_smoothing=0.5), FIRM, 1.126928),  # (0.126928 + 2.126928) / 2
        (Orpo(0.1), PAIR, 2 + 0.1 * math.log(2)),  # equal means: odds ratio 1
        (Orpo(0.1), FIRM, 0.509671),  # odds 1.541494 and 0.156518: ratio 9.848711; 0.5 + 0.1 log(1 + 1 / 9.848711)
        (Cpo(0.1), PAIR, 0.513015 + 2.0),  # log(1 + exp(-0.4)) + 2
        (Cpo(0.1, alpha=0.0), PAIR, 0.513015),
    ],
)
def test_golden_numbers(loss, pair, value):
    assert loss(pair).tolist() == pytest.approx([value], abs=2e-6)


def test_log_odds_stay_finite_and_accurate_near_certainty():
    certain = Orpo()(one_pair(0.0, -30.0, 0, 0))
    assert torch.isfinite(certain).all()
    close = Orpo(1.0)(one_pair(-1e-3, -2e-3, 0, 0, tokens=(1, 1)))
    odds = [p / (1 - p) for p in (math.exp(-1e-3), math.exp(-2e-3))]
    assert float(close) == pytest.approx(1e-3 + math.log(1 + odds[1] / odds[0]), rel=1e-9)


# ---- the same formulas, written another way


def plain_pairs():
    """(log-probability, reference, tokens) of both answers of each pair, as numbers."""
    bounds = [0]
    for count in COUNTS:
        bounds.append(bounds[-1] + count)
    answers = [(math.fsum(LOGPROBS[a:b].tolist()), math.fsum(REFERENCE[a:b].tolist()), b - a) for a, b in pairwise(bounds)]
    return list(zip(answers[::2], answers[1::2], strict=True))


def plain_log_sigmoid(x):
    return -math.log1p(math.exp(-x))


def plain_odds(mean):
    return math.exp(mean) / (1 - math.exp(mean))


PLAIN = {
    "sigmoid": lambda c, r: -(
        0.9 * plain_log_sigmoid(0.3 * ((c[0] - r[0]) - (c[1] - r[1])))
        + 0.1 * plain_log_sigmoid(-0.3 * ((c[0] - r[0]) - (c[1] - r[1])))
    ),
    "robust": lambda c, r: -(
        0.9 * plain_log_sigmoid(0.3 * (c[0] - c[1] - r[0] + r[1])) - 0.1 * plain_log_sigmoid(-0.3 * (c[0] - c[1] - r[0] + r[1]))
    )
    / 0.8,
    "hinge": lambda c, r: max(0.0, 1 - 0.3 * (c[0] - c[1] - r[0] + r[1])),
    "ipo": lambda c, r: (c[0] / c[2] - c[1] / c[2] - r[0] / r[2] + r[1] / r[2] - 1 / 0.6) ** 2,
    "apo_zero": lambda c, r: sigmoid(-0.3 * (c[0] - c[1])) + sigmoid(0.3 * (r[0] - r[1])),
    "sft": lambda c, r: -c[0] / c[2],
    "simpo": lambda c, r: -(
        0.9 * plain_log_sigmoid(2 * (c[0] / c[2] - r[0] / r[2]) - 0.5)
        + 0.1 * plain_log_sigmoid(0.5 - 2 * (c[0] / c[2] - r[0] / r[2]))
    ),
    "orpo": lambda c, r: -c[0] / c[2] - 0.3 * math.log(sigmoid(math.log(plain_odds(c[0] / c[2]) / plain_odds(r[0] / r[2])))),
    "cpo": lambda c, r: -0.9 * plain_log_sigmoid(0.3 * (c[0] - r[0])) - 0.1 * plain_log_sigmoid(-0.3 * (c[0] - r[0]))
    - 0.7 * c[0] / c[2],
}  # fmt: skip
SETTINGS: dict[str, dict[str, float]] = {
    "sigmoid": {"beta": 0.3, "label_smoothing": 0.1},
    "robust": {"beta": 0.3, "label_smoothing": 0.1},
    "hinge": {"beta": 0.3},
    "ipo": {"beta": 0.3},
    "apo_zero": {"beta": 0.3},
    "sft": {},
    "simpo": {"beta": 2.0, "gamma": 0.5, "label_smoothing": 0.1},
    "orpo": {"beta": 0.3},
    "cpo": {"beta": 0.3, "alpha": 0.7, "label_smoothing": 0.1},
}


def objective(kind):
    return PairObjective(((PAIR_LOSSES[kind](**SETTINGS[kind]), 1.0),))


def test_every_loss_is_covered():
    assert PLAIN.keys() == SETTINGS.keys() == PAIR_LOSSES.keys() - {"plugin"}


@pytest.mark.parametrize("kind", PLAIN)
def test_losses_equal_an_independent_implementation(kind):
    losses_S, metrics = objective(kind)(inputs())
    assert losses_S.shape == (6,)
    expected = [PLAIN[kind](chosen, rejected) for chosen, rejected in plain_pairs()]
    assert (losses_S[::2] + losses_S[1::2]).tolist() == pytest.approx(expected, rel=1e-6)
    assert metrics["preference_accuracy"][1] == 3


def check_gradient(function, values):
    """The gradient of a sum of losses against central differences."""
    variable = values.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(function(variable).sum(), variable)
    for i in range(len(values)):
        shift = torch.zeros_like(values)
        shift[i] = 1e-6
        difference = float((function(values + shift) - function(values - shift)).sum()) / 2e-6
        assert float(slopes[i]) == pytest.approx(difference, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("kind", PLAIN)
def test_gradients(kind):
    check_gradient(lambda logprobs_N: objective(kind)(inputs(logprobs_N))[0], LOGPROBS)


def test_reference_free_losses_need_no_reference():
    free = {kind for kind in PLAIN if not objective(kind).needs_reference}
    assert free == {"sft", "simpo", "orpo", "cpo"}
    for kind in free:
        without = objective(kind)(inputs(reference=None))[0]
        assert without.tolist() == objective(kind)(inputs())[0].tolist()


def test_several_losses_are_weighted_and_the_first_gives_the_rewards():
    both = PairObjective(((Sigmoid(0.3), 0.8), (Sft(), 0.5)))
    single = [PairObjective(((loss, 1.0),))(inputs()) for loss in (Sigmoid(0.3), Sft())]
    losses_S, metrics = both(inputs())
    torch.testing.assert_close(losses_S, 0.8 * single[0][0] + 0.5 * single[1][0])
    assert means((None, metrics)) == means(single[0])


def test_metrics_of_pairs():
    result = means(PairObjective(((Sigmoid(0.3), 1.0),))(inputs()))
    rewards = [[0.3 * (answer[0] - answer[1]) for answer in pair] for pair in plain_pairs()]
    chosen, rejected = (sum(column) / 3 for column in zip(*rewards, strict=True))
    assert result == pytest.approx(
        {
            "preference_accuracy": sum(c > r for c, r in rewards) / 3,
            "reward_margin_mean": chosen - rejected,
            "rewards_chosen_mean": chosen,
            "rewards_rejected_mean": rejected,
        }
    )


def squared_margin(pairs, scale=1.0):
    return scale * (pairs.chosen_P - pairs.rejected_P) ** 2


def test_a_plugin_is_a_function_of_pairs():
    loss = Plugin(f"{__name__}:squared_margin", {"scale": 2.0})
    assert loss(PAIR).tolist() == [32.0]


def returned(pairs, value):
    return value


@pytest.mark.parametrize("value", [None, 1.5, [1.5], tensor(1.5).sum(), tensor(1.5, 2.5), tensor(1.5)[None]], ids=str)
def test_a_plugin_that_returns_something_else_is_named_in_one_line(value):
    target = f"{__name__}:returned"
    with pytest.raises((TypeError, UserError)) as caught:
        Plugin(target, {"value": value})(PAIR)
    assert str(caught.value) == f"{target} must return one loss a pair, a tensor of shape (1,)"


# ---- KTO


def test_kto_by_hand():
    ratios = tensor(2.0, -1.0)
    loss = KtoLoss(beta=0.5, desirable_weight=1.0, undesirable_weight=2.0, kl=1.0)
    result = loss(inputs(ratios, tensor(0, 0), (1, 1), tensor(1, 0)))
    # 1 - sigmoid(0.5), 2 (1 - sigmoid(1))
    assert result[0].tolist() == pytest.approx([0.377541, 0.537883], abs=1e-6)
    assert means(result) == {"preference_accuracy": 1, "rewards_chosen_mean": 1, "rewards_rejected_mean": -0.5, "kto_kl": 1}


def test_kto_equals_an_independent_implementation():
    losses_S, metrics = KtoLoss(0.3, 1.2, 0.8, kl=0.4)(inputs())
    answers = [answer for pair in plain_pairs() for answer in pair]
    expected = [
        1.2 * sigmoid(0.3 * (0.4 - a[0] + a[1])) if label else 0.8 * sigmoid(0.3 * (a[0] - a[1] - 0.4))
        for a, label in zip(answers, LABELS.tolist(), strict=True)
    ]
    assert losses_S.tolist() == pytest.approx(expected, rel=1e-6)
    assert metrics["rewards_chosen_mean"][1] == 3


def test_kto_gradients():
    check_gradient(lambda logprobs_N: KtoLoss(0.3, 1.2, 0.8, kl=0.4)(inputs(logprobs_N))[0], LOGPROBS)


def test_the_divergence_is_a_mean_over_sequences():
    answers = [answer for pair in plain_pairs() for answer in pair]
    total, count = mismatched_kl(inputs())[1]["kl"]
    assert (float(total), float(count)) == pytest.approx((sum(a[0] - a[1] for a in answers), 6))


# ---- reward models


def values(last_values_S, margins_S):
    empty = tensor()
    return ValueInputs(empty, last_values_S, (0,) * len(last_values_S), empty, labels_S=margins_S)


def test_reward_model_by_hand():
    scores, margins = tensor(1.0, 0.5, -1.0, 1.0), tensor(0.0, 0.0, 0.5, 0.5)
    result = RewardModelLoss(center_coefficient=0.01)(values(scores, margins))
    # log(1 + exp(-0.5)) + 0.01 x 2.25, log(1 + exp(2.5)) + 0
    assert (result[0][::2] + result[0][1::2]).tolist() == pytest.approx([0.496577, 2.578890], abs=1e-6)
    assert means(result) == {
        "preference_accuracy": 0.5,
        "reward_margin_mean": -0.75,
        "rewards_chosen_mean": 0.0,
        "rewards_rejected_mean": 0.75,
    }


def test_reward_model_equals_an_independent_implementation():
    generator = torch.Generator().manual_seed(4)
    scores = 3 * torch.randn(16, generator=generator, dtype=torch.float64)
    margins = torch.rand(8, generator=generator, dtype=torch.float64).repeat_interleave(2)
    losses_S, metrics = RewardModelLoss(0.1)(values(scores, margins))
    pairs = list(zip(scores[::2].tolist(), scores[1::2].tolist(), margins[::2].tolist(), strict=True))
    expected = [math.log(1 + math.exp(r + m - c)) + 0.1 * (c**2 + 2 * c * r + r**2) for c, r, m in pairs]
    assert (losses_S[::2] + losses_S[1::2]).tolist() == pytest.approx(expected, rel=1e-6)
    right, count = metrics["preference_accuracy"]
    assert (float(right), float(count)) == (sum(c > r for c, r, _ in pairs), 8)
    assert float(metrics["reward_margin_mean"][0]) == pytest.approx(sum(c - r for c, r, _ in pairs), rel=1e-6)


def test_reward_model_gradients():
    scores, margins = tensor(1.0, 0.5, -1.0, 1.0), tensor(0.0, 0.0, 0.5, 0.5)
    loss = RewardModelLoss(0.1)
    check_gradient(lambda last_values_S: loss(values(last_values_S, margins))[0], scores)
    alone = replace(loss, center_coefficient=0.0)(values(scores, margins))[0]
    assert alone.sum() < loss(values(scores, margins))[0].sum()
