"""Token losses. Every function works on the trained tokens of a micro-batch, laid out flat."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from rlflow.algorithms.fused_logprobs import Slopes
from rlflow.algorithms.policy_terms import (
    ImportanceSampling,
    KlEstimator,
    cispo_loss,
    clipped_loss,
    importance_ratio,
    kl_estimate,
    sampler_weights,
    sapo_loss,
)


@dataclass(frozen=True, slots=True)
class LossInputs:
    """What a token loss may depend on; every tensor is float32 of shape [N], N trained tokens."""

    logprobs_N: Tensor
    """Under the model being trained, with gradient, in nats."""
    mean_logprobs_N: Tensor
    """Mean log-probability over the vocabulary, with gradient."""
    entropy_N: Tensor
    """Of the model being trained, with gradient."""
    correct_N: Tensor
    """bool [N]: whether the token is the model's likeliest one."""
    counts: tuple[int, ...]
    """Trained tokens of each sequence; they lie one after the other."""
    weights_N: Tensor
    """Weight of each token in the loss: the loss is the sum of weight x token loss over all ranks and micro-batches."""
    advantages_N: Tensor
    """Advantage of each token's sequence (0 in SFT)."""
    old_logprobs_N: Tensor | None = None
    """Under the model that the step started from; None: the current model is that model (on-policy)."""
    reference_logprobs_N: Tensor | None = None
    """Under the reference model."""
    sampler_logprobs_N: Tensor | None = None
    """As reported by the sampler; NaN where not known."""
    entropy_mask_N: Tensor | None = None
    """1 where the policy term trains the token, else 0; None: everywhere."""
    labels_S: Tensor | None = None
    """float32 [S]: what the data say of each sequence."""


@dataclass(frozen=True, slots=True)
class ValueInputs:
    """What the objective of a critic or a reward model may depend on; float32, N trained tokens, S sequences."""

    values_N: Tensor
    """Value of the state in which each trained token is chosen, with gradient."""
    last_values_S: Tensor
    """Value at the last token of each sequence, with gradient: a reward model's score."""
    counts: tuple[int, ...]
    """Trained tokens of each sequence; they lie one after the other."""
    weights_N: Tensor
    """Weight of each token in the loss."""
    old_values_N: Tensor | None = None
    """Values before the batch's first optimiser step."""
    returns_N: Tensor | None = None
    """What the values should be."""
    labels_S: Tensor | None = None
    """What the data say of each sequence: the margin of its pair."""


Means = dict[str, tuple[Tensor, Tensor]]
"""Metric name -> (numerator, denominator), both scalars; summed over ranks and micro-batches before the division."""


def token_mean(values_N: Tensor, mask_N: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A mean over tokens as (numerator, denominator)."""
    if mask_N is None:
        return values_N.detach().sum(), values_N.new_tensor(float(values_N.numel()))
    return torch.where(mask_N, values_N.detach(), 0.0).sum(), mask_N.sum().to(values_N.dtype)


def cross_entropy_loss(inputs: LossInputs) -> tuple[Tensor, Means]:
    """Negative log-likelihood of each token."""
    means: Means = {
        "entropy_mean": token_mean(inputs.entropy_N),
        "token_accuracy": token_mean(inputs.correct_N.float()),
    }
    return -inputs.logprobs_N, means


@dataclass(frozen=True, slots=True)
class SmoothedCrossEntropy:
    """Cross-entropy against (1 - smoothing) x the token + smoothing x the uniform distribution (Szegedy et al. 2016, eq. 7)."""

    smoothing: float = 0.0

    def slopes(self, weights_N: Tensor, advantages_N: Tensor, known: Mapping[str, Tensor]) -> Slopes:
        """Of the weighted sum of the token losses."""
        return Slopes((self.smoothing - 1) * weights_N, -self.smoothing * weights_N)

    def __call__(self, inputs: LossInputs) -> tuple[Tensor, Means]:
        """Token losses [N] and metrics."""
        losses_N, means = cross_entropy_loss(inputs)
        if self.smoothing:
            losses_N = (1 - self.smoothing) * losses_N - self.smoothing * inputs.mean_logprobs_N
        return losses_N, means


def held_out_loss(inputs: LossInputs) -> tuple[Tensor, Means]:
    """Negative log-likelihood, and how likely whole answers are.

    `accuracy` is the mean over sequences of exp(sum of log-probabilities): the probability that sampling at temperature 1 gives
    exactly the row's answer, so it is the expected accuracy of sampling.
    """
    losses_N, means = cross_entropy_loss(inputs)
    sequences = [part.sum().exp() for part in inputs.logprobs_N.split(inputs.counts) if len(part)]
    return losses_N, {**means, "accuracy": token_mean(torch.stack(sequences))}


@final  # another `__call__` would need other slopes
@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """The policy-gradient loss of PPO and the GRPO family, with KL penalty, entropy bonus and sampler correction."""

    clip_low: float = 0.8
    clip_high: float = 1.2
    kl_coefficient: float = 0.0
    correction: Literal["none", "truncate", "mask"] = "none"
    correction_cap: float = 2.0
    surrogate: Literal["clip", "cispo", "sapo"] = "clip"
    importance_sampling: ImportanceSampling = "token"
    dual_clip: float | None = None
    tau_positive: float = 1.0
    tau_negative: float = 1.05
    kl_estimator: KlEstimator = "k3"
    entropy_coefficient: float = 0.0
    top_entropy_quantile: float = 1.0
    """Below 1 the learner gives `entropy_mask_N`: 1 for this share of the step's tokens, those of the highest entropy."""

    def slopes(self, weights_N: Tensor, advantages_N: Tensor, known: Mapping[str, Tensor]) -> Slopes | None:
        """Of the weighted sum of the token losses, if they are known before the log-probabilities are; `known`: of `LossInputs`.

        On-policy every ratio is 1, and each surrogate has the policy gradient there: -A.
        """
        needs_logprobs = self.kl_coefficient or self.entropy_coefficient or self.correction != "none"
        if needs_logprobs or "old_logprobs" in known or self.importance_sampling == "sequence":
            return None
        slopes_N = -weights_N * advantages_N * known.get("entropy_mask", 1.0)
        if self.surrogate == "cispo":
            slopes_N = slopes_N * min(1.0, self.clip_high)
        return Slopes(slopes_N, torch.zeros_like(slopes_N))

    def __call__(self, inputs: LossInputs) -> tuple[Tensor, Means]:
        """Token losses [N] and metrics.

        L = w * (m * surrogate(r, A) + kl_coefficient * KL - entropy_coefficient * H), with r the ratio to the old policy, m the
        entropy mask and w the sampler correction; w scales the KL term too, and m does not (ms-swift).
        """
        old_N = inputs.logprobs_N.detach() if inputs.old_logprobs_N is None else inputs.old_logprobs_N
        ratio_N = importance_ratio(inputs.logprobs_N, old_N, inputs.counts, self.importance_sampling)
        losses_N = self._surrogate(ratio_N, inputs)
        means: Means = {
            "entropy_mean": token_mean(inputs.entropy_N),
            "ratio_clipped_fraction": token_mean(self._is_clipped(ratio_N, inputs.advantages_N).float()),
        }
        if inputs.entropy_mask_N is not None:
            losses_N = losses_N * inputs.entropy_mask_N
            means["entropy_masked_fraction"] = token_mean(1 - inputs.entropy_mask_N)
        if inputs.reference_logprobs_N is not None:
            kl_N = kl_estimate(inputs.logprobs_N, inputs.reference_logprobs_N, self.kl_estimator)
            losses_N = losses_N + self.kl_coefficient * kl_N
            means["kl_mean"] = token_mean(kl_N)
        if self.entropy_coefficient:
            losses_N = losses_N - self.entropy_coefficient * inputs.entropy_N
        if inputs.sampler_logprobs_N is not None:
            means["sampler_logprob_abs_diff_mean"] = _mismatch(old_N, inputs.sampler_logprobs_N)
            if self.correction != "none":
                weights_N = sampler_weights(old_N, inputs.sampler_logprobs_N, self.correction, self.correction_cap)
                losses_N = losses_N * weights_N
                means["sampler_weight_mean"] = token_mean(weights_N, ~inputs.sampler_logprobs_N.isnan())
        return losses_N, means

    def _surrogate(self, ratio_N: Tensor, inputs: LossInputs) -> Tensor:
        if self.surrogate == "cispo":
            return cispo_loss(ratio_N, inputs.advantages_N, inputs.logprobs_N, self.clip_high)
        if self.surrogate == "sapo":
            return sapo_loss(ratio_N, inputs.advantages_N, self.tau_positive, self.tau_negative)
        return clipped_loss(ratio_N, inputs.advantages_N, (self.clip_low, self.clip_high), self.dual_clip)

    def _is_clipped(self, ratio_N: Tensor, advantages_N: Tensor) -> Tensor:
        """Where a bound changes the gradient."""
        if self.surrogate == "sapo":
            return torch.zeros_like(ratio_N, dtype=torch.bool)
        if self.surrogate == "cispo":
            return ratio_N > self.clip_high
        too_high_N, too_low_N = ratio_N > self.clip_high, ratio_N < self.clip_low
        if self.dual_clip is not None:
            too_low_N = too_low_N | (ratio_N > self.dual_clip)
        return (too_high_N & (advantages_N > 0)) | (too_low_N & (advantages_N < 0))


@dataclass(frozen=True, slots=True)
class ValueLoss:
    """The clipped value loss of PPO.

    L = 1/2 max((V - R)^2, (clip(V, V_old - clip_range, V_old + clip_range) - R)^2), R the return (Schulman et al.'s code of 2017;
    Huang et al. 2022, detail 9). `clip_range` None: no clipping.
    """

    clip_range: float | None = 0.2

    def __call__(self, inputs: ValueInputs) -> tuple[Tensor, Means]:
        """Token losses [N] and metrics."""
        assert inputs.old_values_N is not None and inputs.returns_N is not None
        squares_N = (inputs.values_N - inputs.returns_N) ** 2
        if self.clip_range is None:
            return 0.5 * squares_N, {}
        clipped_N = inputs.old_values_N + (inputs.values_N - inputs.old_values_N).clamp(-self.clip_range, self.clip_range)
        clipped_squares_N = (clipped_N - inputs.returns_N) ** 2
        means: Means = {"value_clipped_fraction": token_mean((clipped_squares_N > squares_N).float())}
        return 0.5 * torch.maximum(squares_N, clipped_squares_N), means


def _mismatch(logprobs_N: Tensor, sampler_logprobs_N: Tensor) -> tuple[Tensor, Tensor]:
    known_N = ~sampler_logprobs_N.isnan()
    return token_mean((logprobs_N - sampler_logprobs_N).abs(), known_N)
