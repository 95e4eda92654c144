"""What a student is trained on: its divergence from a teacher, over the teacher's likeliest tokens or over all."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rlflow.algorithms.fused_candidates import fused_candidate_logprobs
from rlflow.algorithms.fused_divergence import fused_divergence
from rlflow.algorithms.jsd import generalized_jsd
from rlflow.algorithms.losses import Means, token_mean

_LARGEST_LOG_MASS = -1e-6
"""The candidates' probabilities are taken to add up to exp(this) at most: float32 cannot tell less from all."""

HeadScore = Callable[..., Tensor]
"""From hidden states [N, H], the head's weight [V, H] and `temperature` to something of each token, with gradient."""


@dataclass(frozen=True, slots=True)
class TeacherAnswers:
    """Where to get what a teacher says of the sequences of a step."""

    of_sequences: dict[int, Any]
    """References to what it says in the place of a sequence's trained tokens: tensors [n, ...] by name."""
    head: Any
    """Reference to its output head [U, G], if that is needed to read the answers."""


@dataclass(frozen=True, slots=True)
class DistillationInputs:
    """What a distillation objective depends on, of N trained tokens."""

    scores: Tensor
    """What the objective's `head_score` made of the student: log-probabilities [N, K] of candidates, or divergences [N]."""
    teacher_logprobs_NK: Tensor | None = None
    """Of the K candidates under the teacher, which has chosen them."""


@dataclass(frozen=True, slots=True)
class LikeliestTokensJsd:
    """`generalized_jsd` over the teacher's likeliest tokens; all others are one more token of both distributions, which never
    makes the divergence larger.
    """

    beta: float = 0.5

    def head_score(self, known: Mapping[str, Tensor]) -> HeadScore:
        """`known`: `candidates`, int64 [N, K]."""
        return partial(fused_candidate_logprobs, candidates_NK=known["candidates"])

    def __call__(self, inputs: DistillationInputs) -> tuple[Tensor, Means]:
        """Token losses [N] and metrics."""
        assert inputs.teacher_logprobs_NK is not None
        rest_N = 1 - inputs.teacher_logprobs_NK.exp().sum(dim=-1)
        losses_N = generalized_jsd(with_rest(inputs.scores), with_rest(inputs.teacher_logprobs_NK), self.beta)
        return losses_N, {"teacher_rest_mean": token_mean(rest_N), "divergence_mean": token_mean(losses_N)}


@dataclass(frozen=True, slots=True)
class WholeVocabularyJsd:
    """`generalized_jsd` over all tokens, from the hidden states of both models."""

    beta: float = 0.5
    teacher_weight_UG: Tensor | None = None
    """The teacher's output head, on the student's device; a rank fills it in."""

    def head_score(self, known: Mapping[str, Tensor]) -> HeadScore:
        """`known`: `teacher_hidden`, [N, G]."""
        assert self.teacher_weight_UG is not None
        teacher = {"teacher_hidden_NG": known["teacher_hidden"], "teacher_weight_UG": self.teacher_weight_UG}
        return partial(fused_divergence, **teacher, beta=self.beta)

    def __call__(self, inputs: DistillationInputs) -> tuple[Tensor, Means]:
        """Token losses [N] and metrics."""
        return inputs.scores, {"divergence_mean": token_mean(inputs.scores)}


DistillationObjective = LikeliestTokensJsd | WholeVocabularyJsd


def with_rest(logprobs_NK: Tensor) -> Tensor:
    """The same with one more column [N, K + 1]: log of the probability that is left."""
    mass_N = logprobs_NK.logsumexp(dim=-1).clamp(max=_LARGEST_LOG_MASS)
    return torch.cat([logprobs_NK, torch.log(-torch.expm1(mass_N))[:, None]], dim=-1)
