"""The divergence over the whole vocabulary, from hidden states, against the plain formula; chunked."""

import pytest
import torch

from rlflow.algorithms import fused_divergence as module
from rlflow.algorithms import fused_logprobs
from rlflow.algorithms.fused_divergence import fused_divergence
from rlflow.algorithms.jsd import generalized_jsd

N, H, G, V, U = 13, 6, 9, 31, 29
BETAS = [0.0, 0.1, 0.5, 1.0]
TEMPERATURE = 0.7


def problem(dtype=torch.float64):
    """A student of V rows, of which the last are padding, and a teacher of U tokens and another width."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(N, H), (V, H), (N, G), (U, G)]
    hidden, weight, teacher_hidden, teacher_weight = (torch.randn(*s, generator=generator, dtype=dtype) for s in shapes)
    teacher = {"teacher_hidden_NG": teacher_hidden, "teacher_weight_UG": teacher_weight}
    return hidden.requires_grad_(), weight.requires_grad_(), teacher


def plain(hidden, weight, teacher, beta):
    student = (hidden @ weight.T / TEMPERATURE).log_softmax(-1)[:, :U]
    of_teacher = (teacher["teacher_hidden_NG"] @ teacher["teacher_weight_UG"].T / TEMPERATURE).log_softmax(-1)
    return generalized_jsd(student, of_teacher, beta)


def gradients(losses, hidden, weight):
    return torch.autograd.grad((losses * torch.linspace(-1, 2, N, dtype=losses.dtype)).sum(), [hidden, weight])


def limit_chunks(monkeypatch, tokens, element_size=8):
    monkeypatch.setattr(fused_logprobs, "CHUNK_BYTES", tokens * module._COPIES * V * element_size)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("tokens_per_chunk", [1, 5, 100])
def test_values_and_gradients_equal_the_plain_formula(monkeypatch, beta, tokens_per_chunk):
    limit_chunks(monkeypatch, tokens_per_chunk)
    hidden, weight, teacher = problem()
    ours = fused_divergence(hidden, weight, **teacher, beta=beta, temperature=TEMPERATURE)
    theirs = plain(hidden, weight, teacher, beta)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients(ours, hidden, weight), gradients(theirs, hidden, weight), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("beta", BETAS)
def test_gradients_equal_finite_differences(beta):
    hidden, weight, teacher = problem()
    assert torch.autograd.gradcheck(
        lambda h, w: fused_divergence(h, w, **teacher, beta=beta, temperature=TEMPERATURE), (hidden, weight)
    )


def test_rows_of_the_vocabulary_exist_for_a_chunk_at_a_time(monkeypatch):
    limit_chunks(monkeypatch, 4)
    hidden, weight, teacher = problem()
    sizes, compute = [], module.chunk_logits

    def record(*arguments):
        logits = compute(*arguments)
        sizes.append(logits.shape[0])
        return logits

    monkeypatch.setattr(module, "chunk_logits", record)
    losses = fused_divergence(hidden, weight, **teacher, beta=0.5, temperature=1.0)
    saved = sum(tensor.numel() for tensor in losses.grad_fn.saved_tensors)
    losses.sum().backward()
    assert max(sizes) == 4 and sum(sizes) == 2 * 2 * N, "of both models, in the forward and in the backward pass"
    assert saved == N * H + V * H + N * G + U * G, "only the inputs are kept"


def test_bfloat16_inputs_give_float32_values_and_bfloat16_gradients():
    hidden, weight, teacher = problem(torch.bfloat16)
    losses = fused_divergence(hidden, weight, **teacher, beta=0.5, temperature=TEMPERATURE)
    assert losses.dtype == torch.float32
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    of_exact = plain(*exact, {name: tensor.double() for name, tensor in teacher.items()}, 0.5)
    torch.testing.assert_close(losses.double(), of_exact, rtol=0, atol=0.05)
    for ours, theirs in zip(gradients(losses, hidden, weight), gradients(of_exact, *exact), strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours - theirs).norm() < 0.03 * theirs.norm()
