"""The variants of the policy loss: golden numbers by hand, plain formulas token by token, finite differences."""

import math
from itertools import product

import pytest
import torch

from rlflow.algorithms.losses import PolicyLoss
from rlflow.algorithms.policy_terms import entropy_threshold, importance_ratio, kl_estimate, sapo_loss
from tests.unit.algorithms.test_losses import finite_differences, gradient, inputs, means, ratio_inputs, tensor

LN2 = math.log(2)


# ---- ratios


def test_ratio_levels_golden_numbers():
    # log-ratios ln 2 and ln 8 in one sequence, -ln 2 in another: geometric means 4 and 1/2
    old_N, new_N = torch.zeros(3, dtype=torch.float64), tensor(LN2, 3 * LN2, -LN2)
    counts = (2, 0, 1)
    assert importance_ratio(new_N, old_N, counts, "token").tolist() == pytest.approx([2, 8, 0.5])
    assert importance_ratio(new_N, old_N, counts, "sequence").tolist() == pytest.approx([4, 4, 0.5])
    assert importance_ratio(new_N, old_N, counts, "sequence_token").tolist() == pytest.approx([4, 4, 0.5])


def test_sequence_ratios_spread_the_gradient_and_token_ratios_keep_it():
    old_N, logprobs_N, advantages_N = tensor(-1, -1), tensor(-1 + LN2, -1 + 3 * LN2), tensor(1.0, 0.0)
    slopes = {
        level: gradient(
            PolicyLoss(0.0, 9.0, importance_sampling=level), logprobs_N, advantages_N=advantages_N, old_logprobs_N=old_N
        ).tolist()
        for level in ("token", "sequence", "sequence_token")
    }
    # d(-r A) / d logp: r = 2 of the token; r = 4 of the sequence, half through each of its tokens; 4 through the token itself
    assert slopes["token"] == pytest.approx([-2, 0])
    assert slopes["sequence"] == pytest.approx([-2, -2])
    assert slopes["sequence_token"] == pytest.approx([-4, 0])


@pytest.mark.parametrize("level", ["sequence", "sequence_token"])
def test_on_policy_every_level_has_the_plain_gradient_of_a_sequence(level):
    logprobs_N = tensor(-0.3, -4.0, -1.0)
    slopes = gradient(PolicyLoss(importance_sampling=level), logprobs_N, advantages_N=tensor(2, 2, 2), counts=(3,))
    assert slopes.tolist() == pytest.approx([-2, -2, -2])


# ---- surrogates


def test_dual_clip_bounds_the_loss_of_negative_advantages():
    # c = 3: losses of A = -2 grow to 6 only; those of A = 2 are clipped at 1.2 as ever
    result = PolicyLoss(0.8, 1.2, dual_clip=3.0)(ratio_inputs([2.0, 5.0, 0.5, 5.0], [-2, -2, -2, 2]))
    assert result[0].tolist() == pytest.approx([4.0, 6.0, 1.6, -2.4])
    assert means(result)["ratio_clipped_fraction"] == pytest.approx(3 / 4)


def test_cispo_golden_numbers():
    old_N = tensor(-1.5, -1.5)
    logprobs_N = old_N + tensor(0.5, 4.0).log()
    loss = PolicyLoss(clip_high=1.28, surrogate="cispo")
    result = loss(inputs(logprobs_N, tensor(2.0, -1.0), old_logprobs_N=old_N))
    assert result[0].tolist() == pytest.approx([-0.5 * 2 * (-1.5 - LN2), 1.28 * (-1.5 + 2 * LN2)])
    assert means(result)["ratio_clipped_fraction"] == 0.5
    slopes = gradient(loss, logprobs_N, advantages_N=tensor(2.0, -1.0), old_logprobs_N=old_N)
    assert slopes.tolist() == pytest.approx([-1.0, 1.28]), "a clipped token keeps its gradient"


def test_sapo_golden_numbers():
    # sigmoid(ln 3) = 3/4: tau (r - 1) = ln 3
    ratio_N = tensor(1.0, 1 + math.log(3), 1 + math.log(3) / 2, 1.0)
    losses_N = sapo_loss(ratio_N, tensor(2, 2, -2, 0), 1.0, 2.0)
    assert losses_N.tolist() == pytest.approx([-0.5 * 4 * 2, -0.75 * 4 * 2, 0.75 * 2 * 2, 0])


def test_sapo_starts_with_the_policy_gradient_and_fades():
    old_N, advantages_N = tensor(-1, -1, -1), tensor(1.5, -1.5, -1.5)
    loss = PolicyLoss(surrogate="sapo")
    slopes = gradient(loss, old_N + tensor(0, 0, 2.0), advantages_N=advantages_N, old_logprobs_N=old_N)
    assert slopes[:2].tolist() == pytest.approx([-1.5, 1.5])
    assert 0 < slopes[2] < 0.25


# ---- the KL penalty


def test_kl_estimators_golden_numbers():
    policy_N = tensor(-1.0, -1.0)
    found = {k: kl_estimate(policy_N, policy_N + tensor(0.1, -1.0), k).tolist() for k in ("k1", "k2", "k3")}
    assert found["k1"] == pytest.approx([-0.1, 1.0])
    assert found["k2"] == pytest.approx([0.005, 0.5])
    assert found["k3"] == pytest.approx([0.005171, 0.367879], abs=1e-6)


def test_what_the_estimators_estimate():
    """k1 and k3 have the divergence as their mean; k2 has its gradient."""
    logits_V, reference_V = tensor(0.1, 0.7, -0.4).requires_grad_(), tensor(0.4, 0.4, 0.2).log()
    policy_V = logits_V.log_softmax(-1)
    exact = (policy_V.exp() * (policy_V - reference_V)).sum()
    slope = torch.autograd.grad(exact, logits_V, retain_graph=True)[0]
    for estimator, unbiased in {"k1": True, "k2": False, "k3": True}.items():
        estimates_V = kl_estimate(policy_V, reference_V, estimator)
        mean = (policy_V.detach().exp() * estimates_V).sum()
        assert math.isclose(mean.item(), exact.item(), rel_tol=1e-9) is unbiased
        found = torch.autograd.grad(mean, logits_V, retain_graph=True)[0]
        assert torch.allclose(found, slope) is (estimator == "k2")
        if estimator == "k1":
            assert found.tolist() == pytest.approx([0, 0, 0], abs=1e-12), "which is why k1 is no penalty in a loss"


# ---- entropy


def test_entropy_threshold_golden_numbers():
    entropies_N = tensor(0.0, 4.0, 1.0, 3.0, 2.0)
    assert entropy_threshold(entropies_N, 0.2) == pytest.approx(3.2), "the 0.8-quantile of 0 1 2 3 4"
    assert entropy_threshold(entropies_N, 0.5) == pytest.approx(2.0)
    assert entropy_threshold(entropies_N, 1.0) == 0.0
    assert entropy_threshold(tensor(7.0), 0.3) == 7.0


@pytest.mark.parametrize("quantile", [0.1, 0.37, 0.8])
def test_entropy_threshold_is_the_interpolated_quantile(quantile):
    entropies_N = torch.rand(101, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert entropy_threshold(entropies_N, quantile) == pytest.approx(float(torch.quantile(entropies_N, 1 - quantile)))


def test_the_entropy_mask_leaves_the_policy_term_out_and_not_the_penalty():
    logprobs_N = tensor(-1.0, -1.0)
    others = {"reference_logprobs_N": logprobs_N - 1, "entropy_mask_N": tensor(1, 0)}
    result = PolicyLoss(kl_coefficient=0.5)(inputs(logprobs_N, tensor(2.0, 2.0), **others))
    assert result[0].tolist() == pytest.approx([-2 + 0.5 * 0.367879, 0.5 * 0.367879], abs=1e-6)
    assert means(result)["entropy_masked_fraction"] == 0.5


def test_the_entropy_bonus_is_subtracted():
    # the inputs' entropies are 0 and 1
    result = PolicyLoss(entropy_coefficient=0.25)(inputs(tensor(-1.0, -1.0), tensor(2.0, 2.0)))
    assert result[0].tolist() == pytest.approx([-2, -2.25])


# ---- all together

VARIANTS = [
    PolicyLoss(0.8, 1.28, 0.3, "truncate", 2.0, *variant, 1.0, 1.3, estimator, 0.1)
    for variant, estimator in product(
        (
            ("clip", "token", 3.0),
            ("clip", "sequence", None),
            ("clip", "sequence_token", 2.5),
            ("cispo", "token", None),
            ("sapo", "token", None),
            ("sapo", "sequence", None),
        ),
        ("k1", "k2", "k3"),
    )
]


def case():
    generator = torch.Generator().manual_seed(3)

    def noise(scale):
        return scale * torch.randn(40, generator=generator, dtype=torch.float64)

    old_N = -2 + noise(0.5)
    others = {
        "advantages_N": noise(1.0),
        "old_logprobs_N": old_N,
        "reference_logprobs_N": old_N + noise(0.5),
        "sampler_logprobs_N": old_N + noise(0.8),
        "entropy_mask_N": (noise(1.0) > 0).double(),
        "counts": (7, 0, 13, 20),
    }
    return old_N + noise(0.4), others


def plain_losses(loss, logprobs_N, given):
    """The formulas for one token at a time, with Python's floats."""
    losses, start = [], 0
    names = ("old_logprobs", "reference_logprobs", "sampler_logprobs", "advantages", "entropy_mask")
    new, old, reference, sampler, advantages, mask = [logprobs_N.tolist(), *(given[f"{n}_N"].tolist() for n in names)]
    for count in given["counts"]:
        members = range(start, start + count)
        start += count
        for t in members:
            ratio = math.exp(new[t] - old[t])
            if loss.importance_sampling != "token":
                ratio = math.exp(sum(new[i] - old[i] for i in members) / count)
            a = advantages[t]
            if loss.surrogate == "cispo":
                term = -min(ratio, loss.clip_high) * a * new[t]
            elif loss.surrogate == "sapo":
                tau = loss.tau_positive if a > 0 else loss.tau_negative
                term = -a * 4 / (tau * (1 + math.exp(-tau * (ratio - 1))))
            else:
                gain = min(ratio * a, min(max(ratio, loss.clip_low), loss.clip_high) * a)
                term = -max(gain, loss.dual_clip * a) if loss.dual_clip and a < 0 else -gain
            d = reference[t] - new[t]
            kl = {"k1": -d, "k2": d * d / 2, "k3": math.exp(d) - d - 1}[loss.kl_estimator]
            entropy = t / (len(new) - 1)
            weight = min(math.exp(old[t] - sampler[t]), loss.correction_cap)
            losses.append(weight * (mask[t] * term + loss.kl_coefficient * kl - loss.entropy_coefficient * entropy))
    return losses


@pytest.mark.parametrize("loss", VARIANTS, ids=lambda v: f"{v.surrogate}-{v.importance_sampling}-{v.kl_estimator}")
def test_losses_equal_plain_formulas(loss):
    logprobs_N, others = case()
    losses_N, metrics = loss(inputs(logprobs_N, **others))
    assert losses_N.tolist() == pytest.approx(plain_losses(loss, logprobs_N, others), abs=1e-6)
    assert all(math.isfinite(total / count) for total, count in metrics.values())


@pytest.mark.parametrize(
    "loss",
    [v for v in VARIANTS if v.surrogate != "cispo" and v.importance_sampling != "sequence_token"],
    ids=lambda v: f"{v.surrogate}-{v.importance_sampling}-{v.kl_estimator}",
)
def test_gradients_equal_finite_differences(loss):
    """Of the variants whose gradient is that of their value."""
    logprobs_N, others = case()
    ours = gradient(loss, logprobs_N, **others)
    torch.testing.assert_close(ours, finite_differences(loss, logprobs_N, **others), rtol=1e-6, atol=1e-8)
    assert (ours != 0).any()


@pytest.mark.parametrize("level", ["token", "sequence_token"])
@pytest.mark.parametrize("surrogate", ["cispo", "clip"])
def test_gradients_with_stopped_parts_equal_finite_differences_of_the_rest(surrogate, level):
    """cispo: d/d logp of -min(r, high) A logp with the ratio held fixed. GSPO-token: of -s r_t A with s held fixed."""
    logprobs_N, others = case()
    others = {name: others[name] for name in ("advantages_N", "old_logprobs_N", "counts")}
    loss = PolicyLoss(0.0, 1.28 if surrogate == "cispo" else 1e9, surrogate=surrogate, importance_sampling=level)
    fixed_N = importance_ratio(logprobs_N, others["old_logprobs_N"], others["counts"], level).detach()

    def frozen(given):
        if surrogate == "cispo":
            return -fixed_N.clamp(max=1.28) * given.advantages_N * given.logprobs_N, {}
        return -fixed_N * torch.exp(given.logprobs_N - logprobs_N) * given.advantages_N, {}

    ours = gradient(loss, logprobs_N, **others)
    torch.testing.assert_close(ours, finite_differences(frozen, logprobs_N, **others), rtol=1e-6, atol=1e-8)
