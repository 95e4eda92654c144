"""A frozen language model that says which tokens it holds for likely."""

from typing import Any, NamedTuple

from torch import Tensor, nn

from rlflow.algorithms.fused_candidates import fused_top_k
from rlflow.learner.policy_model import PolicyModel
from rlflow.learner.sequences import MicroBatchTensors


class LikeliestTokens(NamedTuple):
    """K tokens for each of N positions (a tuple, which DeepSpeed's hooks see through)."""

    tokens_NK: Tensor
    """int64 [N, K]."""
    logprobs_NK: Tensor
    """float32 [N, K], in nats."""


class _LikeliestTokensHead(nn.Module):
    """Takes the place of `lm_head`, as `LogprobHead` does. Rows beyond the tokenizer's tokens (padding) count as absent."""

    def __init__(self, weight: nn.Parameter, num_candidates: int, num_tokens: int) -> None:
        super().__init__()
        self.weight = weight
        self._num_candidates, self._num_tokens = num_candidates, num_tokens

    def forward(self, hidden_NH: Tensor, temperature: float) -> LikeliestTokens:
        return LikeliestTokens(*fused_top_k(hidden_NH, self.weight[: self._num_tokens], self._num_candidates, temperature))


class TeacherModel(PolicyModel):
    """A causal language model, called with micro-batches for its `num_candidates` likeliest of `num_tokens` tokens."""

    def __init__(self, model: Any, num_candidates: int, num_tokens: int) -> None:
        super().__init__(model.requires_grad_(False))
        weight = self.causal_lm[0].get_output_embeddings().weight
        self.causal_lm[0].set_output_embeddings(_LikeliestTokensHead(weight, num_candidates, num_tokens))

    def forward(self, batch: MicroBatchTensors, temperature: float) -> LikeliestTokens:
        """The likeliest tokens in the place of the batch's N trained ones."""
        return self.causal_lm[0].get_output_embeddings()(self.hidden_states(batch), temperature)
