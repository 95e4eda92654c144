"""Kahneman-Tversky optimisation: a loss on single answers with a label (`kind: kto`)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rlflow.algorithms.losses import LossInputs, Means, token_mean
from rlflow.algorithms.pairs import reference_sums, sequence_sums


@dataclass(frozen=True, slots=True)
class KtoLoss:
    """KTO (Ethayarajh et al. 2024): gains and losses against the reference point beta x kl."""

    level: ClassVar[str] = "sequence"
    needs_reference: ClassVar[bool] = True
    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    kl: float = 0.0
    """Estimate of KL(policy || reference) over the step, without gradient: see `mismatched_kl`."""

    def __call__(self, inputs: LossInputs) -> tuple[Tensor, Means]:
        """Losses [S]: w_d (1 - sigmoid(beta (r - kl))) of desirable answers, w_u (1 - sigmoid(beta (kl - r))) of others.

        r is the log-ratio of the answer to the reference. `preference_accuracy`: answers whose r has the sign of their label.
        """
        assert inputs.labels_S is not None
        ratios_S = sequence_sums(inputs.logprobs_N, inputs.counts) - reference_sums(inputs)
        desirable_S = inputs.labels_S > 0.5
        gains_S = self.beta * (ratios_S - self.kl)
        losses_S = torch.where(
            desirable_S,
            self.desirable_weight * (1 - torch.sigmoid(gains_S)),
            self.undesirable_weight * (1 - torch.sigmoid(-gains_S)),
        )
        means: Means = {
            "preference_accuracy": token_mean(((ratios_S > 0) == desirable_S).to(gains_S.dtype)),
            "rewards_chosen_mean": token_mean(self.beta * ratios_S, desirable_S),
            "rewards_rejected_mean": token_mean(self.beta * ratios_S, ~desirable_S),
            "kto_kl": token_mean(torch.full_like(ratios_S, self.kl)),
        }
        return losses_S, means


def mismatched_kl(inputs: LossInputs) -> tuple[Tensor, Means]:
    """KTO's estimate of KL(policy || reference): mean log-ratio of answers to other prompts (Ethayarajh et al. 2024).

    Its mean `kl` over a step is to be clamped at 0.
    """
    ratios_S = sequence_sums(inputs.logprobs_N, inputs.counts) - reference_sums(inputs)
    return inputs.logprobs_N * 0, {"kl": token_mean(ratios_S)}
