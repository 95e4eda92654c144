"""The divergence of a student from its teacher over the whole vocabulary, straight from the hidden states of both.

As in `fused_logprobs`, what has a column a vocabulary entry exists for a chunk of positions at a time, in the backward pass too.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlflow.algorithms.fused_logprobs import add_product, chunk_logits, token_chunks
from rlflow.algorithms.jsd import generalized_jsd

_COPIES = 8
"""Matrices of a chunk's size that exist at once: logits, probabilities and the mixture's of both models."""


def fused_divergence(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    *,
    teacher_hidden_NG: Tensor,
    teacher_weight_UG: Tensor,
    beta: float,
    temperature: float,
) -> Tensor:
    """`generalized_jsd` of softmax(hidden weight^T / temperature) of student and teacher: [N], in nats, float32 or better.

    Shapes: hidden [N, H] and weight [V, H] of one dtype; of the teacher [N, G] and [U, G], U <= V: the student's first U tokens
    are the teacher's. With gradient for the student's two.
    """
    return _FusedDivergence.apply(  # pyright: ignore[reportReturnType]
        hidden_NH, weight_VH, teacher_hidden_NG, teacher_weight_UG, beta, temperature
    )


class _FusedDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        teacher_hidden_NG: Tensor,
        teacher_weight_UG: Tensor,
        beta: float,
        temperature: float,
    ) -> Tensor:
        losses = [
            _divergence(
                _logits(hidden_NH[rows], weight_VH), _logits(teacher_hidden_NG[rows], teacher_weight_UG), beta, temperature
            )
            for rows in token_chunks(hidden_NH, weight_VH, _COPIES)
        ]
        ctx.save_for_backward(hidden_NH, weight_VH, teacher_hidden_NG, teacher_weight_UG)
        ctx.beta, ctx.temperature = beta, temperature
        return torch.cat(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grads_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, teacher_hidden_NG, teacher_weight_UG = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden_NH)
        total_dtype = torch.promote_types(weight_VH.dtype, torch.float32)
        grad_weight = weight_VH.new_zeros(weight_VH.shape, dtype=total_dtype) if ctx.needs_input_grad[1] else None
        for rows in token_chunks(hidden_NH, weight_VH, _COPIES):
            logits = _logits(hidden_NH[rows], weight_VH)
            of_teacher = _logits(teacher_hidden_NG[rows], teacher_weight_UG)
            gradient = _logit_gradient(logits, of_teacher, ctx.beta, ctx.temperature, grads_N[rows]).to(weight_VH.dtype)
            torch.mm(gradient, weight_VH, out=grad_hidden[rows])
            if grad_weight is not None:
                add_product(grad_weight, gradient.T, hidden_NH[rows])
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight_VH.dtype), None, None, None, None


def _logits(hidden_NH: Tensor, weight_VH: Tensor) -> Tensor:
    """A chunk's logits, in float32 or better."""
    return chunk_logits(hidden_NH, weight_VH).to(torch.promote_types(hidden_NH.dtype, torch.float32))


def _divergence(logits_NV: Tensor, teacher_logits_NU: Tensor, beta: float, temperature: float) -> Tensor:
    student_NV = (logits_NV / temperature).log_softmax(dim=-1)
    teacher_NU = (teacher_logits_NU / temperature).log_softmax(dim=-1)
    return generalized_jsd(student_NV[:, : teacher_NU.shape[1]], teacher_NU, beta)


def _logit_gradient(logits_NV: Tensor, teacher_logits_NU: Tensor, beta: float, temperature: float, grads_N: Tensor) -> Tensor:
    with torch.enable_grad():
        logits_NV = logits_NV.detach().requires_grad_()
        losses_N = _divergence(logits_NV, teacher_logits_NU, beta, temperature)
    return torch.autograd.grad(losses_N, logits_NV, grads_N)[0]
