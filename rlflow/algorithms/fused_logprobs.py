"""Log-probabilities and entropies of target tokens, straight from hidden states.

The logits of all tokens never exist at once: forward and backward walk over chunks of tokens, and the backward pass computes
a chunk's logits again instead of keeping them.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LOGITS_PER_CHUNK = 2**27
"""Elements of the float32 logits that exist at once (512 MiB)."""


class TokenScores(NamedTuple):
    """What a model says about N target tokens (a tuple, which DeepSpeed's hooks see through)."""

    logprobs_N: Tensor
    """float32 [N], in nats, with gradient."""
    mean_logprobs_N: Tensor
    """float32 [N]: mean over the vocabulary of the log-probabilities, with gradient (for label smoothing)."""
    entropy_N: Tensor
    """float32 [N], in nats: of the distribution the target was scored under; without gradient."""
    correct_N: Tensor
    """bool [N]: whether the target is the likeliest token."""


def fused_logprobs(hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, temperature: float) -> TokenScores:
    """Score each target under softmax(hidden weight^T / temperature).

    Shapes: hidden [N, H] and weight [V, H] of one dtype, targets int64 [N]. Gradients flow through the log-probabilities and
    their means; entropy and correctness are by-products.
    """
    return TokenScores(*_FusedLogprobs.apply(hidden_NH, weight_VH, targets_N, temperature))


class _FusedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        count = hidden_NH.shape[0]
        logprobs_N = hidden_NH.new_empty(count, dtype=torch.float32)
        mean_N = torch.empty_like(logprobs_N)
        entropy_N = torch.empty_like(logprobs_N)
        normalizer_N = torch.empty_like(logprobs_N)
        correct_N = torch.empty(count, dtype=torch.bool, device=hidden_NH.device)
        for rows in _chunks(count, weight_VH.shape[0]):
            logits = _scaled_logits(hidden_NH[rows], weight_VH, temperature)
            normalizer = torch.logsumexp(logits, dim=-1)
            target_logits = logits.gather(-1, targets_N[rows, None]).squeeze(-1)
            logprobs_N[rows] = target_logits - normalizer
            mean_N[rows] = logits.mean(dim=-1) - normalizer
            correct_N[rows] = target_logits >= logits.amax(dim=-1)
            normalizer_N[rows] = normalizer
            probabilities = (logits - normalizer[:, None]).exp_()
            entropy_N[rows] = normalizer - torch.linalg.vecdot(probabilities, logits)
        ctx.save_for_backward(hidden_NH, weight_VH, targets_N, normalizer_N)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy_N, correct_N)
        ctx.set_materialize_grads(False)
        return logprobs_N, mean_N, entropy_N, correct_N

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_N: Tensor | None, grad_mean_N: Tensor | None, *_: None
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden_NH, weight_VH, targets_N, normalizer_N = ctx.saved_tensors
        grad_N = torch.zeros_like(normalizer_N) if grad_N is None else grad_N
        total_N = grad_N if grad_mean_N is None else grad_N + grad_mean_N
        grad_hidden = torch.empty_like(hidden_NH)
        grad_weight = weight_VH.new_zeros(weight_VH.shape, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for rows in _chunks(hidden_NH.shape[0], weight_VH.shape[0]):
            logits = _scaled_logits(hidden_NH[rows], weight_VH, ctx.temperature)
            # d logp / d logits = onehot(target) - softmax; d mean / d logits = 1/V - softmax; both over the temperature
            grad_logits = (logits - normalizer_N[rows, None]).exp_().mul_(-total_N[rows, None] / ctx.temperature)
            grad_logits.scatter_add_(-1, targets_N[rows, None], grad_N[rows, None] / ctx.temperature)
            if grad_mean_N is not None:
                grad_logits += grad_mean_N[rows, None] / (ctx.temperature * weight_VH.shape[0])
            grad_logits = grad_logits.to(hidden_NH.dtype)
            grad_hidden[rows] = grad_logits @ weight_VH
            if grad_weight is not None:
                grad_weight += grad_logits.T @ hidden_NH[rows]
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight_VH.dtype), None, None


def _scaled_logits(hidden_NH: Tensor, weight_VH: Tensor, temperature: float) -> Tensor:
    return (hidden_NH @ weight_VH.T).float().div_(temperature)


def _chunks(count: int, vocabulary: int) -> list[slice]:
    size = max(1, LOGITS_PER_CHUNK // vocabulary)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
