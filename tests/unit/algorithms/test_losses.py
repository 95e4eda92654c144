"""Golden numbers of the token losses, worked out by hand from the formulas in their docstrings."""

import dataclasses
import math

import pytest
import torch

from rlflow.algorithms.losses import (
    LossInputs,
    PolicyLoss,
    SmoothedCrossEntropy,
    cross_entropy_loss,
    held_out_loss,
)
from rlflow.algorithms.policy_terms import kl_estimate, sampler_weights

NAN = math.nan


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def inputs(logprobs_N, advantages_N=None, *, counts=None, correct=None, **others):
    """Loss inputs in float64; the log-probabilities are as given, so that they may carry a gradient."""
    count = len(logprobs_N)
    return LossInputs(
        logprobs_N=logprobs_N,
        entropy_N=torch.linspace(0, 1, count, dtype=torch.float64),
        mean_logprobs_N=torch.full((count,), -3.0, dtype=torch.float64),
        correct_N=torch.tensor(correct or [True] * count),
        counts=counts or (count,),
        weights_N=torch.ones(count, dtype=torch.float64),
        advantages_N=torch.zeros(count, dtype=torch.float64) if advantages_N is None else advantages_N,
        **others,
    )


def means(result):
    return {name: float(total / count) for name, (total, count) in result[1].items()}


def gradient(loss, logprobs_N, **others):
    logprobs_N = logprobs_N.clone().requires_grad_()
    losses_N, _ = loss(inputs(logprobs_N, **others))
    return torch.autograd.grad(losses_N.sum(), logprobs_N)[0]


def finite_differences(loss, logprobs_N, step=1e-6, **others):
    slopes = []
    for i in range(len(logprobs_N)):
        shift = torch.zeros_like(logprobs_N)
        shift[i] = step
        up, down = (loss(inputs(logprobs_N + s, **others))[0].sum() for s in (shift, -shift))
        slopes.append(float(up - down) / (2 * step))
    return tensor(*slopes)


# ---- supervised


def test_cross_entropy():
    losses_N, metrics = cross_entropy_loss(inputs(tensor(-0.5, -2.0, -1.0), correct=[True, False, False]))
    assert losses_N.tolist() == [0.5, 2.0, 1.0]
    assert metrics["token_accuracy"][0] == 1
    assert metrics["token_accuracy"][1] == 3
    assert means((None, metrics))["entropy_mean"] == pytest.approx(0.5)


def test_held_out_accuracy_is_the_probability_of_sampling_whole_answers():
    logprobs_N = tensor(0.5, 0.5, 0.2).log()
    result = held_out_loss(inputs(logprobs_N, counts=(2, 0, 1)))
    assert result[0].tolist() == (-logprobs_N).tolist()
    assert means(result)["accuracy"] == pytest.approx((0.25 + 0.2) / 2)
    assert result[1]["accuracy"][1] == 2, "a sequence without trained tokens does not count"


# ---- the clipped policy loss


def ratio_inputs(ratios, advantages, **others):
    old_N = torch.full((len(ratios),), -1.5, dtype=torch.float64)
    return inputs(old_N + tensor(*ratios).log(), tensor(*advantages), old_logprobs_N=old_N, **others)


def test_the_ratio_is_clipped_only_where_that_lowers_the_objective():
    # clip range [0.8, 1.28]
    ratios = [1.1, 1.5, 1.5, 0.5, 0.5, 1.0]
    advantages = [2, 2, -2, 2, -2, 0]
    losses = [-2.2, -2.56, 3.0, -1.0, 1.6, 0]
    result = PolicyLoss(0.8, 1.28)(ratio_inputs(ratios, advantages))
    assert result[0].tolist() == pytest.approx(losses)
    assert means(result)["ratio_clipped_fraction"] == pytest.approx(2 / 6)


def test_clipped_tokens_have_no_gradient():
    old_N = tensor(-1.0, -1.0, -1.0, -1.0)
    logprobs_N = old_N + tensor(1.5, 1.5, 0.5, 0.5).log()
    slopes = gradient(PolicyLoss(0.8, 1.2), logprobs_N, advantages_N=tensor(1, -1, 1, -1), old_logprobs_N=old_N)
    # d(-r A) / d logp = -r A
    assert slopes.tolist() == pytest.approx([0, 1.5, -0.5, 0])


def test_on_policy_the_gradient_is_the_plain_policy_gradient():
    logprobs_N, advantages_N = tensor(-0.3, -4.0, -1.0), tensor(1.5, -0.5, 2.0)
    assert gradient(PolicyLoss(), logprobs_N, advantages_N=advantages_N).tolist() == (-advantages_N).tolist()
    # also with a clip range that ends at the ratio itself
    exact = gradient(PolicyLoss(1.0, 1.0), logprobs_N, advantages_N=advantages_N)
    assert exact.tolist() == (-advantages_N).tolist()


def test_on_policy_equals_old_logprobs_of_the_same_model():
    logprobs_N, advantages_N = tensor(-0.3, -4.0, -1.0), tensor(1.5, -0.5, 2.0)
    without = PolicyLoss()(inputs(logprobs_N, advantages_N))
    explicit = PolicyLoss()(inputs(logprobs_N, advantages_N, old_logprobs_N=logprobs_N.clone()))
    assert without[0].tolist() == explicit[0].tolist()
    assert means(without) == means(explicit)


def test_a_huge_log_ratio_stays_finite():
    losses_N, _ = PolicyLoss()(inputs(tensor(0.0, -900.0), tensor(-1, -1), old_logprobs_N=tensor(-900.0, 0.0)))
    assert losses_N.tolist() == pytest.approx([math.exp(20), 0.8])


# ---- the KL penalty


def test_k3_golden_numbers():
    policy_N = tensor(-1.0, -1.0, -1.0, -1.0)
    k3_N = kl_estimate(policy_N, policy_N + tensor(0.1, -0.1, 1.0, 0.0), "k3")
    assert k3_N.tolist() == pytest.approx([0.005171, 0.004837, 0.718282, 0], abs=5e-7)


def test_k3_is_bounded():
    assert kl_estimate(tensor(-900.0, 0.0), tensor(0.0, -900.0), "k3").tolist() == pytest.approx([10, 10])


def test_k3_averages_to_the_divergence():
    policy_V, reference_V = tensor(0.2, 0.3, 0.5), tensor(0.4, 0.4, 0.2)
    exact = (policy_V * (policy_V / reference_V).log()).sum()
    estimate = (policy_V * kl_estimate(policy_V.log(), reference_V.log(), "k3")).sum()
    assert float(estimate) == pytest.approx(float(exact))


def test_the_penalty_is_added_to_the_loss():
    logprobs_N, advantages_N = tensor(-1.0, -2.0), tensor(1.0, -1.0)
    reference_N = logprobs_N + tensor(1.0, -0.1)
    result = PolicyLoss(kl_coefficient=0.5)(inputs(logprobs_N, advantages_N, reference_logprobs_N=reference_N))
    assert result[0].tolist() == pytest.approx([-1 + 0.5 * 0.718282, 1 + 0.5 * 0.004837], abs=1e-6)
    assert means(result)["kl_mean"] == pytest.approx((0.718282 + 0.004837) / 2, abs=1e-6)


# ---- the sampler correction


def test_sampler_weights():
    old_N = tensor(-1.0, -1.0, -1.0, -1.0)
    sampler_N = old_N - tensor(0.5, 2.0, 3.0, NAN).log()
    assert sampler_weights(old_N, sampler_N, "truncate", 2.0).tolist() == pytest.approx([0.5, 2, 2, 1])
    assert sampler_weights(old_N, sampler_N, "mask", 2.0).tolist() == pytest.approx([0.5, 2, 0, 1])
    assert sampler_weights(old_N, sampler_N, "truncate", 0.5)[-1] == 1, "a cap does not touch unknown tokens"


@pytest.mark.parametrize(("mode", "weights"), [("truncate", [0.5, 2.0]), ("mask", [0.5, 0.0])])
def test_the_correction_scales_loss_and_penalty(mode, weights):
    old_N = tensor(-1.0, -2.0)
    others = {
        "old_logprobs_N": old_N,
        "reference_logprobs_N": old_N + 1,
        "sampler_logprobs_N": old_N - tensor(0.5, 4.0).log(),
    }
    result = PolicyLoss(kl_coefficient=1.0, correction=mode)(inputs(old_N, tensor(1.0, 1.0), **others))
    assert result[0].tolist() == pytest.approx([w * (-1 + math.e - 2) for w in weights])
    assert means(result)["sampler_weight_mean"] == pytest.approx(sum(weights) / 2)


def test_without_correction_sampler_logprobs_are_only_measured():
    logprobs_N = tensor(-1.0, -2.0, -3.0)
    plain_N, _ = PolicyLoss()(inputs(logprobs_N, tensor(1, 1, 1)))
    result = PolicyLoss()(inputs(logprobs_N, tensor(1, 1, 1), sampler_logprobs_N=tensor(-1.5, NAN, -2.9)))
    assert result[0].tolist() == plain_N.tolist()
    assert means(result)["sampler_logprob_abs_diff_mean"] == pytest.approx((0.5 + 0.1) / 2)
    assert result[1]["sampler_logprob_abs_diff_mean"][1] == 2, "the mean is over known tokens"
    assert "sampler_weight_mean" not in result[1]


@pytest.mark.parametrize("correction", ["none", "truncate", "mask"])
def test_unknown_sampler_logprobs_leak_no_nan(correction):
    old_N, advantages_N = tensor(-1.0, -2.0, -3.0), tensor(1.0, -1.0, 0.5)
    loss = PolicyLoss(correction=correction)
    others = {"advantages_N": advantages_N, "old_logprobs_N": old_N}
    all_unknown = tensor(NAN, NAN, NAN)
    result = loss(inputs(old_N + 0.1, sampler_logprobs_N=all_unknown, **others))
    assert result[0].tolist() == PolicyLoss()(inputs(old_N + 0.1, **others))[0].tolist()
    assert torch.isfinite(gradient(loss, old_N + 0.1, sampler_logprobs_N=all_unknown, **others)).all()
    for name, (total, count) in result[1].items():
        assert torch.isfinite(total), name
        assert count == (0 if name.startswith("sampler_") else 3), name
    known = loss(inputs(old_N + 0.1, sampler_logprobs_N=tensor(-1.0, -2.5, NAN), **others))
    assert torch.isfinite(known[0]).all()
    assert known[0][2] == result[0][2], "an unknown token is trained on without correction"
    assert all(math.isfinite(value) for value in means(known).values())


def test_the_correction_has_no_gradient():
    logprobs_N = tensor(-1.0)
    slope = gradient(
        PolicyLoss(correction="truncate"),
        logprobs_N,
        advantages_N=tensor(1.0),
        sampler_logprobs_N=logprobs_N - math.log(0.5),
    )
    assert slope.tolist() == pytest.approx([-0.5])


# ---- all together


@pytest.mark.parametrize("correction", ["none", "truncate", "mask"])
@pytest.mark.parametrize("kl_coefficient", [0.0, 0.3])
def test_gradients_equal_finite_differences(correction, kl_coefficient):
    generator = torch.Generator().manual_seed(3)

    def noise(scale):
        return scale * torch.randn(40, generator=generator, dtype=torch.float64)

    old_N = -2 + noise(0.5)
    others = {
        "advantages_N": noise(1.0),
        "old_logprobs_N": old_N,
        "reference_logprobs_N": old_N + noise(0.5),
        "sampler_logprobs_N": old_N + noise(0.8),
    }
    loss = PolicyLoss(0.8, 1.2, kl_coefficient, correction)
    logprobs_N = old_N + noise(0.3)
    ours = gradient(loss, logprobs_N, **others)
    torch.testing.assert_close(ours, finite_differences(loss, logprobs_N, **others), rtol=1e-6, atol=1e-8)
    assert (ours == 0).any() or kl_coefficient, "some tokens are clipped"
    assert (ours != 0).any()


def test_metrics_carry_no_gradient():
    logprobs_N = tensor(-1.0, -2.0).requires_grad_()
    known = {"reference_logprobs_N": tensor(-1.5, -1.5), "sampler_logprobs_N": tensor(-1.1, -2.1)}
    for loss in (PolicyLoss(correction="truncate", kl_coefficient=0.1), held_out_loss):
        for name, (total, count) in loss(inputs(logprobs_N, tensor(1, 1), **known))[1].items():
            assert not total.requires_grad, name
            assert not count.requires_grad, name


def test_label_smoothing_is_cross_entropy_with_a_softened_target():
    torch.manual_seed(0)
    logits = torch.randn(5, 7, dtype=torch.float64)
    targets = torch.tensor([0, 6, 3, 3, 1])
    logprobs = logits.log_softmax(-1)
    given = inputs(logprobs[range(5), targets])
    given = dataclasses.replace(given, mean_logprobs_N=logprobs.mean(-1))
    losses, _ = SmoothedCrossEntropy(0.2)(given)
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none", label_smoothing=0.2)
    assert torch.allclose(losses, expected)


SURROGATES = {
    "clip": PolicyLoss(0.8, 1.2),
    "dual clip": PolicyLoss(0.8, 1.2, dual_clip=3.0),
    "no room to clip": PolicyLoss(1.0, 1.0),
    "gspo-token": PolicyLoss(importance_sampling="sequence_token"),
    "cispo": PolicyLoss(surrogate="cispo"),
    "cispo, low": PolicyLoss(surrogate="cispo", clip_high=0.7),
    "sapo": PolicyLoss(surrogate="sapo", tau_positive=0.9, tau_negative=1.5),
}


@pytest.mark.parametrize("loss", SURROGATES.values(), ids=SURROGATES)
@pytest.mark.parametrize("mask_N", [None, tensor(1, 0, 1, 1)])
def test_slopes_of_an_on_policy_step_are_its_gradient(loss, mask_N):
    advantages_N, weights_N = tensor(1.5, -1.0, 0.0, -0.3), tensor(0.2, 0.1, 0.4, 0.3)
    logprobs_N = tensor(-0.1, -2.0, -1.0, -3.0).requires_grad_()
    losses_N, _ = loss(inputs(logprobs_N, advantages_N, counts=(3, 1), entropy_mask_N=mask_N))
    (expected,) = torch.autograd.grad((weights_N * losses_N).sum(), logprobs_N)
    slopes = loss.slopes(weights_N, advantages_N, {} if mask_N is None else {"entropy_mask": mask_N})
    torch.testing.assert_close(slopes.logprobs_N, expected)
    assert not slopes.mean_logprobs_N.any()


@pytest.mark.parametrize(
    ("change", "known"),
    [
        ({"kl_coefficient": 0.1}, {}),
        ({"entropy_coefficient": 0.1}, {}),
        ({"correction": "truncate"}, {}),
        ({"importance_sampling": "sequence"}, {}),
        ({}, {"old_logprobs": tensor(-1.0)}),
    ],
)
def test_slopes_that_depend_on_the_log_probabilities_are_not_known(change, known):
    assert PolicyLoss(**change).slopes(tensor(1.0), tensor(1.0), known) is None
