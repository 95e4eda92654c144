"""Log-probabilities of several candidate tokens a position, and a model's likeliest tokens, straight from hidden states.

As in `fused_logprobs`, the logits of all positions never exist at once.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlflow.algorithms.fused_logprobs import add_product, chunk_logits, token_chunks


def fused_candidate_logprobs(hidden_NH: Tensor, weight_VH: Tensor, candidates_NK: Tensor, temperature: float) -> Tensor:
    """Log-probabilities, float32 [N, K] in nats, of K tokens a position under softmax(hidden weight^T / temperature).

    Shapes: hidden [N, H] and weight [V, H] of one dtype, candidates int64 [N, K]. With gradient.
    """
    return _FusedCandidates.apply(hidden_NH, weight_VH, candidates_NK, temperature)  # pyright: ignore[reportReturnType]


@torch.no_grad()
def fused_top_k(hidden_NH: Tensor, weight_VH: Tensor, count: int, temperature: float) -> tuple[Tensor, Tensor]:
    """The `count` likeliest tokens of each position, int64 [N, K], and their log-probabilities, float32 [N, K]; no gradient."""
    tokens_NK = torch.empty(len(hidden_NH), count, dtype=torch.int64, device=hidden_NH.device)
    logprobs_NK = torch.empty(len(hidden_NH), count, dtype=torch.float32, device=hidden_NH.device)
    for rows in token_chunks(hidden_NH, weight_VH):
        logits = _scaled(hidden_NH[rows], weight_VH, temperature)
        best, tokens_NK[rows] = logits.topk(count, dim=-1)
        logprobs_NK[rows] = best - logits.logsumexp(dim=-1, keepdim=True)
    return tokens_NK, logprobs_NK


class _FusedCandidates(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, candidates_NK: Tensor, temperature: float) -> Tensor:
        logprobs_NK = torch.empty(candidates_NK.shape, dtype=torch.float32, device=hidden_NH.device)
        normalizers_N1 = logprobs_NK.new_empty(len(hidden_NH), 1)
        for rows in token_chunks(hidden_NH, weight_VH):
            logits = _scaled(hidden_NH[rows], weight_VH, temperature)
            normalizers_N1[rows] = logits.logsumexp(dim=-1, keepdim=True)
            logprobs_NK[rows] = logits.gather(-1, candidates_NK[rows]) - normalizers_N1[rows]
        ctx.save_for_backward(hidden_NH, weight_VH, candidates_NK, normalizers_N1)
        ctx.temperature = temperature
        return logprobs_NK

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grads_NK: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden_NH, weight_VH, candidates_NK, normalizers_N1 = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden_NH)
        grad_weight = weight_VH.new_zeros(weight_VH.shape, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for rows in token_chunks(hidden_NH, weight_VH):
            # d logp_k / d logits = onehot(k) - softmax; over the temperature
            gradient = _scaled(hidden_NH[rows], weight_VH, ctx.temperature).sub_(normalizers_N1[rows]).exp_()
            gradient.mul_(-grads_NK[rows].sum(dim=-1, keepdim=True))
            gradient.scatter_add_(-1, candidates_NK[rows], grads_NK[rows])
            gradient = gradient.div_(ctx.temperature).to(weight_VH.dtype)
            torch.mm(gradient, weight_VH, out=grad_hidden[rows])
            if grad_weight is not None:
                add_product(grad_weight, gradient.T, hidden_NH[rows])
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight_VH.dtype), None, None


def _scaled(hidden_NH: Tensor, weight_VH: Tensor, temperature: float) -> Tensor:
    """A chunk's logits in float32, divided by the temperature."""
    return chunk_logits(hidden_NH, weight_VH).float().div_(temperature)
