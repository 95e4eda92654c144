"""A frozen language model that says what it holds for likely."""

from typing import Any, NamedTuple

from torch import Tensor, nn

from rlflow.algorithms.fused_candidates import fused_top_k
from rlflow.learner.policy_model import PolicyModel
from rlflow.learner.sequences import MicroBatchTensors


class LikeliestTokens(NamedTuple):
    """K tokens for each of N positions (a tuple, which DeepSpeed's hooks see through)."""

    candidates: Tensor
    """int64 [N, K]."""
    teacher_logprobs: Tensor
    """float32 [N, K], in nats."""


class HiddenStates(NamedTuple):
    """What the head makes its predictions of: with the head, the distribution over the whole vocabulary."""

    teacher_hidden: Tensor
    """[N, G]."""


class _TeacherHead(nn.Module):
    """Takes the place of `lm_head`, as `LogprobHead` does. Rows beyond the tokenizer's tokens (padding) count as absent."""

    def __init__(self, weight: nn.Parameter, num_candidates: int | None, num_tokens: int) -> None:
        super().__init__()
        self.weight = weight
        self.copy_UG: Tensor | None = None
        self._num_candidates, self._num_tokens = num_candidates, num_tokens

    def forward(self, hidden_NG: Tensor, temperature: float) -> LikeliestTokens | HiddenStates:
        if self._num_candidates is not None:
            return LikeliestTokens(*fused_top_k(hidden_NG, self.weight[: self._num_tokens], self._num_candidates, temperature))
        if self.copy_UG is None:  # only here ZeRO-3 has gathered the weight, which does not change
            self.copy_UG = self.weight[: self._num_tokens].detach().to("cpu", copy=True)
        return HiddenStates(hidden_NG)


class TeacherModel(PolicyModel):
    """A causal language model, called with micro-batches for its `num_candidates` likeliest of `num_tokens` tokens; or, if that
    is None, for its hidden states.
    """

    def __init__(self, model: Any, num_candidates: int | None, num_tokens: int) -> None:
        super().__init__(model.requires_grad_(False))
        weight = self.causal_lm[0].get_output_embeddings().weight
        self.causal_lm[0].set_output_embeddings(_TeacherHead(weight, num_candidates, num_tokens))

    def forward(self, batch: MicroBatchTensors, temperature: float) -> LikeliestTokens | HiddenStates:
        """In the place of the batch's N trained tokens."""
        return self.causal_lm[0].get_output_embeddings()(self.hidden_states(batch), temperature)

    @property
    def head(self) -> Tensor:
        """The output head [U, G], in host memory; known once the model has been called for hidden states."""
        copy = self.causal_lm[0].get_output_embeddings().copy_UG
        assert copy is not None
        return copy
