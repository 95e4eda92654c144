"""Log-probabilities and entropies of target tokens, straight from hidden states.

The logits of all tokens never exist at once: forward and backward walk over chunks of tokens, and the backward pass computes
a chunk's logits again instead of keeping them.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = 2**29
"""Size of the logits that exist at once, in the model's data type."""


class TokenScores(NamedTuple):
    """What a model says about N target tokens (a tuple, which DeepSpeed's hooks see through)."""

    logprobs_N: Tensor
    """float32 [N], in nats, with gradient."""
    mean_logprobs_N: Tensor
    """float32 [N]: mean over the vocabulary of the log-probabilities, with gradient (for label smoothing)."""
    entropy_N: Tensor
    """float32 [N], in nats: of the distribution the target was scored under, with gradient."""
    correct_N: Tensor
    """bool [N]: whether the target is the likeliest token."""


def fused_logprobs(hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, temperature: float) -> TokenScores:
    """Score each target under softmax(hidden weight^T / temperature).

    Shapes: hidden [N, H] and weight [V, H] of one dtype, targets int64 [N]. Gradients flow through all but correctness; a
    gradient through the entropy is computed only where something asks for it.
    """
    return TokenScores(*_FusedLogprobs.apply(hidden_NH, weight_VH, targets_N, temperature))


class _FusedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        count = hidden_NH.shape[0]
        logprobs_N = hidden_NH.new_empty(count, dtype=torch.float32)
        means_N, entropies_N, normalizers_N = (torch.empty_like(logprobs_N) for _ in range(3))
        correct_N = torch.empty_like(logprobs_N, dtype=torch.bool)
        statistics = _row_operations(hidden_NH).row_statistics
        for rows in token_chunks(hidden_NH, weight_VH):
            statistics(
                chunk_logits(hidden_NH[rows], weight_VH),
                targets_N[rows],
                temperature,
                logprobs_N=logprobs_N[rows],
                means_N=means_N[rows],
                entropies_N=entropies_N[rows],
                normalizers_N=normalizers_N[rows],
                correct_N=correct_N[rows],
            )
        ctx.save_for_backward(hidden_NH, weight_VH, targets_N, normalizers_N, entropies_N)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(correct_N)
        ctx.set_materialize_grads(False)
        return logprobs_N, means_N, entropies_N, correct_N

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grads_N: Tensor | None, mean_grads_N: Tensor | None, entropy_grads_N: Tensor | None, _: None
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden_NH, weight_VH, targets_N, normalizers_N, entropies_N = ctx.saved_tensors
        zeros_N = torch.zeros_like(normalizers_N)
        grads_N = zeros_N if grads_N is None else grads_N
        mean_grads_N = zeros_N if mean_grads_N is None else mean_grads_N
        to_gradient = _row_operations(hidden_NH).logits_to_gradient
        grad_hidden = torch.empty_like(hidden_NH)
        grad_weight = weight_VH.new_zeros(weight_VH.shape, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for rows in token_chunks(hidden_NH, weight_VH):
            logits = chunk_logits(hidden_NH[rows], weight_VH)
            entropy = None if entropy_grads_N is None else (entropies_N[rows], entropy_grads_N[rows])
            to_gradient(logits, targets_N[rows], normalizers_N[rows], grads_N[rows], mean_grads_N[rows], ctx.temperature, entropy)
            torch.mm(logits, weight_VH, out=grad_hidden[rows])
            if grad_weight is not None:
                add_product(grad_weight, logits.T, hidden_NH[rows])
            del logits
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight_VH.dtype), None, None


def _row_operations(tensor: Tensor) -> Any:
    """What is done to logits row by row: Triton kernels on a GPU, plain torch elsewhere."""
    if tensor.is_cuda:
        from rlflow.algorithms import logit_kernels

        return logit_kernels
    return _PlainRowOperations


class _PlainRowOperations:
    @staticmethod
    def row_statistics(
        logits_NV: Tensor,
        targets_N: Tensor,
        temperature: float,
        *,
        logprobs_N: Tensor,
        means_N: Tensor,
        entropies_N: Tensor,
        normalizers_N: Tensor,
        correct_N: Tensor,
    ) -> None:
        logits = logits_NV.float().div_(temperature)
        normalizer_N = normalizers_N.copy_(torch.logsumexp(logits, dim=-1))
        target_N = logits.gather(-1, targets_N[:, None]).squeeze(-1)
        logprobs_N.copy_(target_N - normalizer_N)
        means_N.copy_(logits.mean(dim=-1) - normalizer_N)
        correct_N.copy_(target_N >= logits.amax(dim=-1))
        probabilities = (logits - normalizer_N[:, None]).exp_()
        entropies_N.copy_(normalizer_N - torch.linalg.vecdot(probabilities, logits))

    @staticmethod
    def logits_to_gradient(
        logits_NV: Tensor,
        targets_N: Tensor,
        normalizers_N: Tensor,
        grads_N: Tensor,
        mean_grads_N: Tensor,
        temperature: float,
        entropy: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        # d logp / d logits = onehot(target) - softmax; d mean / d logits = 1/V - softmax; d H / d logits = -p (log p + H);
        # all over the temperature. `entropy`: entropies and their gradients.
        logprobs_NV = logits_NV.float().div_(temperature).sub_(normalizers_N[:, None])
        factors_NV = -(grads_N + mean_grads_N)[:, None]
        if entropy is not None:
            entropies_N, entropy_grads_N = entropy
            factors_NV = factors_NV - entropy_grads_N[:, None] * (logprobs_NV + entropies_N[:, None])
        gradient = logprobs_NV.exp_().mul_(factors_NV)
        gradient.scatter_add_(-1, targets_N[:, None], grads_N[:, None])
        gradient += mean_grads_N[:, None] / logits_NV.shape[1]
        logits_NV.copy_(gradient.div_(temperature))


def chunk_logits(hidden_NH: Tensor, weight_VH: Tensor) -> Tensor:
    """Logits [n, V] of a chunk of positions."""
    return hidden_NH @ weight_VH.T


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left right, with the float32 total as the matrix product's accumulator where there is one for 16-bit factors."""
    if total.is_cuda and total.dtype != left.dtype:
        torch.ops.aten.addmm.dtype_out(total, left, right, torch.float32, out=total)
    else:
        total += left @ right


def token_chunks(hidden_NH: Tensor, weight_VH: Tensor, copies: int = 1) -> list[slice]:
    """Chunks of the positions, each with at most `CHUNK_BYTES` for `copies` matrices of the logits' size."""
    count = hidden_NH.shape[0]
    size = max(1, CHUNK_BYTES // (copies * weight_VH.shape[0] * hidden_NH.element_size()))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
