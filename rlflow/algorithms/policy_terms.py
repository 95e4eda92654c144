"""The parts a policy loss is made of: importance ratios, surrogate objectives, KL estimates, sampler weights.

All tensors are of shape [N]: the trained tokens of whole sequences, one sequence after the other.
"""

from typing import Literal

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to this before exponentiation (ms-swift, TRL)."""
KL_LIMIT = 10.0
"""A token's KL estimate is clamped to this (OpenRLHF, ms-swift)."""

ImportanceSampling = Literal["token", "sequence", "sequence_token"]
KlEstimator = Literal["k1", "k2", "k3"]


def importance_ratio(logprobs_N: Tensor, old_logprobs_N: Tensor, counts: tuple[int, ...], level: ImportanceSampling) -> Tensor:
    """Ratio of the policy to the one that sampled, for each token. `counts`: tokens of each sequence.

    - token: exp(logp - old) (Schulman et al. 2017)
    - sequence: exp of the mean log-ratio over the token's sequence (GSPO, Zheng et al. 2025, eq. 7)
    - sequence_token: the value of `sequence`, and the gradient of the token's own log-probability (GSPO-token, eq. 14)
    """
    log_ratio_N = logprobs_N - old_logprobs_N
    if level != "token":
        log_ratio_N = _sequence_means(log_ratio_N, counts)
    ratio_N = torch.exp(log_ratio_N.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
    if level == "sequence_token":
        ratio_N = ratio_N.detach() * torch.exp(logprobs_N - logprobs_N.detach())
    return ratio_N


def clipped_loss(ratio_N: Tensor, advantages_N: Tensor, clip: tuple[float, float], dual_clip: float | None) -> Tensor:
    """-min(r A, clip(r, low, high) A) (Schulman et al. 2017, eq. 7).

    With `dual_clip` = c: at most c |A| where A < 0, and no gradient beyond (Ye et al. 2020).
    """
    losses_N = -torch.minimum(ratio_N * advantages_N, ratio_N.clamp(*clip) * advantages_N)
    if dual_clip is not None:
        losses_N = torch.where(advantages_N < 0, torch.minimum(losses_N, -dual_clip * advantages_N), losses_N)
    return losses_N


def cispo_loss(ratio_N: Tensor, advantages_N: Tensor, logprobs_N: Tensor, high: float) -> Tensor:
    """-sg(min(r, high)) A logp: every token keeps a gradient, of bounded weight (MiniMax-M1 2025)."""
    return -ratio_N.detach().clamp(max=high) * advantages_N * logprobs_N


def sapo_loss(ratio_N: Tensor, advantages_N: Tensor, tau_positive: float, tau_negative: float) -> Tensor:
    """-sigmoid(tau (r - 1)) 4 / tau A, a soft gate in place of the clip (SAPO, Gao et al. 2025).

    tau is `tau_positive` where A > 0, else `tau_negative`. At r = 1 the gradient is the policy gradient.
    """
    tau_N = torch.where(advantages_N > 0, tau_positive, tau_negative)
    return -torch.sigmoid(tau_N * (ratio_N - 1)) * 4 / tau_N * advantages_N


def kl_estimate(logprobs_N: Tensor, reference_logprobs_N: Tensor, estimator: KlEstimator) -> Tensor:
    """Estimate of KL(policy || reference) for each token, with d = reference - policy (Schulman 2020).

    k1: -d; k2: d^2 / 2; k3: exp(d) - d - 1. Only k1 and k3 have the divergence as their mean, only k2 its gradient.
    """
    difference_N = (reference_logprobs_N - logprobs_N).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    if estimator == "k1":
        return -difference_N
    if estimator == "k2":
        return difference_N.square() / 2
    return (torch.exp(difference_N) - difference_N - 1).clamp(-KL_LIMIT, KL_LIMIT)


def sampler_weights(old_logprobs_N: Tensor, sampler_logprobs_N: Tensor, mode: Literal["truncate", "mask"], cap: float) -> Tensor:
    """Importance weights w = exp(old - sampler): min(w, cap), or w where w <= cap and 0 elsewhere. Without gradient.

    Where the sampler's log-probability is NaN (not known), w is 1.
    """
    difference_N = (old_logprobs_N - sampler_logprobs_N).detach().clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    weights_N = torch.exp(difference_N)
    capped_N = weights_N.clamp(max=cap) if mode == "truncate" else torch.where(weights_N <= cap, weights_N, 0.0)
    return torch.where(sampler_logprobs_N.isnan(), 1.0, capped_N)


def entropy_threshold(entropies_N: Tensor, quantile: float) -> float:
    """The entropy that the `quantile` of tokens with the highest ones reach: the (1 - quantile)-quantile, interpolated.

    Training those alone is Wang et al. 2025 ("Beyond the 80/20 rule").
    """
    ordered_N = entropies_N.double().sort().values
    position = (1 - quantile) * (len(ordered_N) - 1)
    below = int(position)
    above = min(below + 1, len(ordered_N) - 1)
    return float(ordered_N[below] + (position - below) * (ordered_N[above] - ordered_N[below]))


def _sequence_means(values_N: Tensor, counts: tuple[int, ...]) -> Tensor:
    """Every token's value replaced by the mean of its sequence."""
    return torch.cat([part.mean().expand_as(part) if len(part) else part for part in values_N.split(counts)])
