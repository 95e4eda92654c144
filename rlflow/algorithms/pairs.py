"""Pairs of a chosen and a rejected answer.

The sequences of a micro-batch are whole pairs, chosen (2p) and rejected (2p + 1). All losses are per sequence: a pair's loss is
spread over its two.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rlflow.algorithms.losses import LossInputs, Means, token_mean


@dataclass(frozen=True, slots=True)
class Pairs:
    """P pairs; every tensor is float32 [P]. Log-probabilities are sums over an answer's tokens, in nats."""

    chosen_P: Tensor
    """Of the chosen answers under the model being trained, with gradient."""
    rejected_P: Tensor
    reference_chosen_P: Tensor
    """Under the reference; zeros if no loss needs one."""
    reference_rejected_P: Tensor
    chosen_tokens_P: Tensor
    """Tokens of each answer."""
    rejected_tokens_P: Tensor

    @property
    def chosen_ratios_P(self) -> Tensor:
        """log(policy / reference) of the chosen answers."""
        return self.chosen_P - self.reference_chosen_P

    @property
    def rejected_ratios_P(self) -> Tensor:
        """log(policy / reference) of the rejected answers."""
        return self.rejected_P - self.reference_rejected_P

    @property
    def chosen_means_P(self) -> Tensor:
        """Mean log-probability of the chosen answers' tokens."""
        return self.chosen_P / self.chosen_tokens_P

    @property
    def rejected_means_P(self) -> Tensor:
        """Mean log-probability of the rejected answers' tokens."""
        return self.rejected_P / self.rejected_tokens_P


def pairs_of(inputs: LossInputs) -> Pairs:
    """The pairs of S = 2 P sequences; without a reference its log-probabilities are zeros."""
    sums_S = sequence_sums(inputs.logprobs_N, inputs.counts)
    reference_S = torch.zeros_like(sums_S) if inputs.reference_logprobs_N is None else reference_sums(inputs)
    counts_S = torch.tensor(inputs.counts, dtype=sums_S.dtype, device=sums_S.device)
    return Pairs(sums_S[::2], sums_S[1::2], reference_S[::2], reference_S[1::2], counts_S[::2], counts_S[1::2])


def sequence_sums(values_N: Tensor, counts: tuple[int, ...]) -> Tensor:
    """Sums [S] over each sequence's tokens."""
    return torch.stack([part.sum() for part in values_N.split(counts)])


def reference_sums(inputs: LossInputs) -> Tensor:
    """The same of the reference's log-probabilities."""
    assert inputs.reference_logprobs_N is not None
    return sequence_sums(inputs.reference_logprobs_N, inputs.counts)


def spread(losses_P: Tensor) -> Tensor:
    """A pair's loss, half on each of its sequences."""
    return losses_P.repeat_interleave(2) / 2


def pair_means(chosen_P: Tensor, rejected_P: Tensor) -> Means:
    """Metrics of the answers' rewards."""
    return {
        "preference_accuracy": token_mean((chosen_P > rejected_P).to(chosen_P.dtype)),
        "reward_margin_mean": token_mean(chosen_P - rejected_P),
        "rewards_chosen_mean": token_mean(chosen_P),
        "rewards_rejected_mean": token_mean(rejected_P),
    }
