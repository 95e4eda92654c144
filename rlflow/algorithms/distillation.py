"""Divergences between a student's and a teacher's distribution over tokens."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rlflow.algorithms.losses import Means, token_mean

_LARGEST_LOG_MASS = -1e-6
"""The candidates' probabilities are taken to add up to exp(this) at most: float32 cannot tell less from all."""


@dataclass(frozen=True, slots=True)
class DistillationInputs:
    """What a distillation objective depends on: N trained tokens, K candidates for each, chosen by the teacher."""

    logprobs_NK: Tensor
    """Of the candidates under the student, with gradient, in nats."""
    teacher_logprobs_NK: Tensor
    """Of the candidates under the teacher."""
    counts: tuple[int, ...]
    """Trained tokens of each sequence; they lie one after the other."""
    weights_N: Tensor
    """Weight of each token in the loss."""


@dataclass(frozen=True, slots=True)
class GeneralizedJsd:
    """The generalised Jensen-Shannon divergence of teacher t and student s (Agarwal et al. 2024, eq. 1).

    beta KL(t || m) + (1 - beta) KL(s || m), m = beta t + (1 - beta) s; at its ends, where that vanishes, beta 0 is the forward
    KL(t || s) and beta 1 the reverse KL(s || t) (TRL, ms-swift). With `has_rest`, the tokens that are no candidates are one more
    token of both distributions, which never makes the divergence larger.
    """

    beta: float = 0.5
    has_rest: bool = True

    def __call__(self, inputs: DistillationInputs) -> tuple[Tensor, Means]:
        """Token losses [N] and metrics."""
        student, teacher = inputs.logprobs_NK, inputs.teacher_logprobs_NK
        means: Means = {}
        if self.has_rest:
            means["teacher_rest_mean"] = token_mean(1 - teacher.exp().sum(dim=-1))
            student, teacher = with_rest(student), with_rest(teacher)
        losses_N = generalized_jsd(student, teacher, self.beta)
        return losses_N, {**means, "divergence_mean": token_mean(losses_N)}


def with_rest(logprobs_NK: Tensor) -> Tensor:
    """The same with one more column [N, K + 1]: log of the probability that is left."""
    mass_N = logprobs_NK.logsumexp(dim=-1).clamp(max=_LARGEST_LOG_MASS)
    return torch.cat([logprobs_NK, torch.log(-torch.expm1(mass_N))[:, None]], dim=-1)


def generalized_jsd(student_NK: Tensor, teacher_NK: Tensor, beta: float) -> Tensor:
    """`GeneralizedJsd` of log-probabilities over the same K tokens: [N], in nats."""
    if beta == 0:
        return _kl(teacher_NK, student_NK)
    if beta == 1:
        return _kl(student_NK, teacher_NK)
    mixture_NK = torch.logaddexp(teacher_NK + math.log(beta), student_NK + math.log1p(-beta))
    return beta * _kl(teacher_NK, mixture_NK) + (1 - beta) * _kl(student_NK, mixture_NK)


def _kl(left_NK: Tensor, right_NK: Tensor) -> Tensor:
    return (left_NK.exp() * (left_NK - right_NK)).sum(dim=-1)
