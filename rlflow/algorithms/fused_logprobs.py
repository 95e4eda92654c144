"""Log-probabilities and entropies of target tokens, straight from hidden states.

The logits of all tokens never exist at once: forward and backward walk over chunks of tokens, and the backward pass computes
a chunk's logits again instead of keeping them. Where the loss's derivatives by the log-probabilities are known beforehand
(cross-entropy, the policy gradient of an on-policy step), the forward pass computes the gradients too, and each chunk's logits
exist once (as in Liger's fused linear cross-entropy, Hsu et al. 2024).
"""

import math
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = 3 * 2**28
"""Size of the logits that exist at once, in the model's data type. Every chunk reads and writes the weight's whole gradient, so
small ones cost time."""
_ROUND_TOKENS = 128
"""Matrix products are fastest with round numbers of tokens."""


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


class Slopes(NamedTuple):
    """Derivatives of a loss by the scores, up to a common factor, where they do not depend on these."""

    logprobs_N: Tensor
    """float32 [N]: by the log-probabilities."""
    mean_logprobs_N: Tensor
    """float32 [N]: by the means over the vocabulary."""


def fused_logprobs(
    hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, temperature: float, slopes: Slopes | None = None
) -> TokenScores:
    """Score each target under softmax(hidden weight^T / temperature).

    Shapes: hidden [N, H] and weight [V, H] of one dtype, targets int64 [N]. Gradients flow through all but correctness; a
    gradient through the entropy is computed only where something asks for it. With `slopes`, the loss must be a multiple of what
    they say; the gradients are then computed with the scores.
    """
    return TokenScores(*_FusedLogprobs.apply(hidden_NH, weight_VH, targets_N, temperature, slopes))


class _FusedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, temperature: float, slopes: Slopes | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        count = hidden_NH.shape[0]
        logprobs_N = hidden_NH.new_empty(count, dtype=torch.float32)
        means_N, entropies_N, normalizers_N = (torch.empty_like(logprobs_N) for _ in range(3))
        correct_N = torch.empty_like(logprobs_N, dtype=torch.bool)
        rows_of = _row_operations(hidden_NH)
        is_known = slopes is not None and any(ctx.needs_input_grad[:2])
        gradients = _Gradients(hidden_NH, weight_VH, ctx.needs_input_grad[1]) if is_known else None
        for rows in token_chunks(hidden_NH, weight_VH):
            logits = chunk_logits(hidden_NH[rows], weight_VH)
            rows_of.row_statistics(
                logits,
                targets_N[rows],
                temperature,
                logprobs_N=logprobs_N[rows],
                means_N=means_N[rows],
                entropies_N=entropies_N[rows],
                normalizers_N=normalizers_N[rows],
                correct_N=correct_N[rows],
            )
            if gradients is not None and slopes is not None:
                known = (slopes.logprobs_N[rows], slopes.mean_logprobs_N[rows])
                rows_of.logits_to_gradient(logits, targets_N[rows], normalizers_N[rows], *known, temperature)
                gradients.add(rows, logits)
            del logits
        if gradients is None or slopes is None:
            ctx.save_for_backward(hidden_NH, weight_VH, targets_N, normalizers_N, entropies_N)
        else:
            ctx.save_for_backward(gradients.hidden_NH, gradients.weight_VH, slopes.logprobs_N)
        ctx.is_known, ctx.temperature, ctx.weight_dtype = is_known, temperature, weight_VH.dtype
        ctx.mark_non_differentiable(correct_N)
        ctx.set_materialize_grads(False)
        return logprobs_N, means_N, entropies_N, correct_N

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grads_N: Tensor | None, mean_grads_N: Tensor | None, entropy_grads_N: Tensor | None, _: None
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        if ctx.is_known:
            assert grads_N is not None and entropy_grads_N is None, "the loss is not the one that the slopes are of"
            grad_hidden, grad_weight, slopes_N = ctx.saved_tensors
            tiny = torch.finfo(torch.float32).tiny
            unit = slopes_N.abs().sum().clamp_min(tiny)  # squares of small slopes would vanish
            scaled_N = slopes_N / unit
            factor = torch.dot(grads_N / unit, scaled_N) / torch.dot(scaled_N, scaled_N).clamp_min(tiny)
            grad_weight = None if grad_weight is None else grad_weight.mul_(factor).to(ctx.weight_dtype)
            return grad_hidden.mul_(factor), grad_weight, None, None, None
        hidden_NH, weight_VH, targets_N, normalizers_N, entropies_N = ctx.saved_tensors
        zeros_N = torch.zeros_like(normalizers_N)
        grads_N = zeros_N if grads_N is None else grads_N
        mean_grads_N = zeros_N if mean_grads_N is None else mean_grads_N
        to_gradient = _row_operations(hidden_NH).logits_to_gradient
        gradients = _Gradients(hidden_NH, weight_VH, ctx.needs_input_grad[1])
        for rows in token_chunks(hidden_NH, weight_VH):
            logits = chunk_logits(hidden_NH[rows], weight_VH)
            entropy = None if entropy_grads_N is None else (entropies_N[rows], entropy_grads_N[rows])
            to_gradient(logits, targets_N[rows], normalizers_N[rows], grads_N[rows], mean_grads_N[rows], ctx.temperature, entropy)
            gradients.add(rows, logits)
            del logits
        grad_weight = gradients.weight_VH
        return gradients.hidden_NH, None if grad_weight is None else grad_weight.to(ctx.weight_dtype), None, None, None


class _Gradients:
    """Of the hidden states, and in float32 of the weight, from the gradient of one chunk of logits after the other."""

    def __init__(self, hidden_NH: Tensor, weight_VH: Tensor, needs_weight: bool) -> None:
        self._hidden_NH, self._weight_VH = hidden_NH, weight_VH
        self.hidden_NH = torch.empty_like(hidden_NH)
        self.weight_VH = weight_VH.new_zeros(weight_VH.shape, dtype=torch.float32) if needs_weight else None

    def add(self, rows: slice, logit_grads_nV: Tensor) -> None:
        """Take in the rows' part."""
        torch.mm(logit_grads_nV, self._weight_VH, out=self.hidden_NH[rows])
        if self.weight_VH is not None:
            add_product(self.weight_VH, logit_grads_nV.T, self._hidden_NH[rows])


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
        logits = logits_NV.float() / temperature  # not in place: the caller's logits may be needed again
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
    most = max(1, CHUNK_BYTES // (copies * weight_VH.shape[0] * hidden_NH.element_size()))
    unit = _ROUND_TOKENS if most >= _ROUND_TOKENS else 1
    units = math.ceil(count / unit)
    number = math.ceil(units / (most // unit))
    ends = [min(units * i // number * unit, count) for i in range(number + 1)] if number else []
    return [slice(start, end) for start, end in pairwise(ends)]  # nearly alike: a small one costs as much as a large one
