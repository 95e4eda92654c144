# pyright: reportCallIssue=false, reportOperatorIssue=false
"""Triton kernels over a chunk of logits: all statistics in one read, and the gradient in place of the logits."""

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096
_NUM_WARPS = 8


@triton.jit
def _statistics(
    logits, targets, logprobs, means, entropies, normalizers, correct, vocabulary, inverse_temperature, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * vocabulary
    highest = -float("inf")
    exponentials = 0.0
    weighted = 0.0
    total = 0.0
    for start in range(0, vocabulary, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < vocabulary
        x = tl.load(logits + columns, mask=inside, other=-float("inf")).to(tl.float32) * inverse_temperature
        new_highest = tl.maximum(highest, tl.max(x))
        rescale = tl.exp(highest - new_highest)
        p = tl.exp(x - new_highest)
        finite = tl.where(inside, x, 0.0)
        exponentials = exponentials * rescale + tl.sum(p)
        weighted = weighted * rescale + tl.sum(p * finite)
        total += tl.sum(finite)
        highest = new_highest
    normalizer = highest + tl.log(exponentials)
    target = tl.load(logits + tl.load(targets + row)).to(tl.float32) * inverse_temperature
    tl.store(logprobs + row, target - normalizer)
    tl.store(means + row, total / vocabulary - normalizer)
    tl.store(entropies + row, normalizer - weighted / exponentials)
    tl.store(normalizers + row, normalizer)
    tl.store(correct + row, target >= highest)


@triton.jit
def _gradient(
    logits,
    targets,
    normalizers,
    grads,
    mean_grads,
    entropies,
    entropy_grads,
    vocabulary,
    inverse_temperature,
    THROUGH_ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < vocabulary
    logits += row * vocabulary
    grad = tl.load(grads + row)
    mean_grad = tl.load(mean_grads + row)
    x = tl.load(logits + columns, mask=inside, other=0.0).to(tl.float32) * inverse_temperature
    # d logp / d logit = onehot(target) - softmax; d mean / d logit = 1/V - softmax; d H / d logit = -p (log p + H)
    logprob = x - tl.load(normalizers + row)
    factor = grad + mean_grad
    if THROUGH_ENTROPY:
        factor += tl.load(entropy_grads + row) * (logprob + tl.load(entropies + row))
    value = mean_grad / vocabulary - factor * tl.exp(logprob)
    value += tl.where(columns == tl.load(targets + row), grad, 0.0)
    tl.store(logits + columns, (value * inverse_temperature).to(logits.dtype.element_ty), mask=inside)


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
    """Fill the outputs (float32 [N], correct bool [N]) with statistics of softmax(logits / temperature) of each row."""
    _statistics[(logits_NV.shape[0],)](
        logits_NV,
        targets_N,
        logprobs_N,
        means_N,
        entropies_N,
        normalizers_N,
        correct_N,
        logits_NV.shape[1],
        1.0 / temperature,
        BLOCK=_BLOCK,
        num_warps=_NUM_WARPS,
    )


def logits_to_gradient(
    logits_NV: Tensor,
    targets_N: Tensor,
    normalizers_N: Tensor,
    grads_N: Tensor,
    mean_grads_N: Tensor,
    temperature: float,
    entropy: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Replace the logits by the gradient of sum(grads logprobs + mean_grads means + entropy_grads entropies) in them.

    `entropy`: entropies and entropy_grads, float32 [N] each; None: without that term, which then costs nothing.
    """
    rows, vocabulary = logits_NV.shape
    grads_N, mean_grads_N = grads_N.contiguous(), mean_grads_N.contiguous()  # autograd may hand in an expanded scalar
    entropies_N, entropy_grads_N = (normalizers_N, normalizers_N) if entropy is None else (part.contiguous() for part in entropy)
    _gradient[(rows, triton.cdiv(vocabulary, _BLOCK))](
        logits_NV,
        targets_N,
        normalizers_N,
        grads_N,
        mean_grads_N,
        entropies_N,
        entropy_grads_N,
        vocabulary,
        1.0 / temperature,
        THROUGH_ENTROPY=entropy is not None,
        BLOCK=_BLOCK,
        num_warps=_NUM_WARPS,
    )
