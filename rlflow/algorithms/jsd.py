"""The generalised Jensen-Shannon divergence of two distributions over tokens."""

import math

from torch import Tensor


def generalized_jsd(student_NK: Tensor, teacher_NK: Tensor, beta: float) -> Tensor:
    """Of log-probabilities over the same K tokens: [N], in nats (Agarwal et al. 2024, eq. 1).

    beta KL(t || m) + (1 - beta) KL(s || m), m = beta t + (1 - beta) s; at its ends, where that vanishes, beta 0 is the forward
    KL(t || s) and beta 1 the reverse KL(s || t) (TRL, ms-swift).
    """
    if beta == 0:
        return _kl(teacher_NK, student_NK)
    if beta == 1:
        return _kl(student_NK, teacher_NK)
    mixture_NK = (teacher_NK + math.log(beta)).logaddexp(student_NK + math.log1p(-beta))
    return beta * _kl(teacher_NK, mixture_NK) + (1 - beta) * _kl(student_NK, mixture_NK)


def _kl(left_NK: Tensor, right_NK: Tensor) -> Tensor:
    return (left_NK.exp() * (left_NK - right_NK)).sum(dim=-1)
