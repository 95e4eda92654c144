"""Candidates' log-probabilities and a teacher's likeliest tokens, against log_softmax in float64."""

import pytest
import torch

from rlflow.algorithms import fused_candidates as module
from rlflow.algorithms import fused_logprobs
from rlflow.algorithms.fused_candidates import fused_candidate_logprobs, fused_top_k

N, H, V, K = 23, 8, 37, 5
FLOAT_BYTES = 4


def problem(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden_NH = torch.randn(N, H, generator=generator).to(dtype).requires_grad_()
    weight_VH = torch.randn(V, H, generator=generator).to(dtype).requires_grad_()
    candidates_NK = torch.stack([torch.randperm(V, generator=generator)[:K] for _ in range(N)])
    return hidden_NH, weight_VH, candidates_NK


def plain(hidden_NH, weight_VH, candidates_NK, temperature):
    logits = hidden_NH.double() @ weight_VH.double().T / temperature
    return logits.log_softmax(-1).gather(-1, candidates_NK)


def gradients(logprobs_NK, hidden_NH, weight_VH):
    upstream_NK = torch.linspace(-1, 2, N * K, dtype=logprobs_NK.dtype).view(N, K)
    return torch.autograd.grad((logprobs_NK * upstream_NK).sum(), [hidden_NH, weight_VH])


def test_golden_numbers():
    # logits ln 1, ln 2, ln 5 are probabilities 1/8, 2/8, 5/8
    weight_VH = torch.tensor([[1.0], [2.0], [5.0]]).log()
    logprobs = fused_candidate_logprobs(torch.ones(1, 1), weight_VH, torch.tensor([[2, 0]]), 1.0)
    assert logprobs.exp().flatten().tolist() == pytest.approx([5 / 8, 1 / 8])
    tokens, logprobs = fused_top_k(torch.ones(1, 1), weight_VH, 2, 1.0)
    assert tokens.tolist() == [[2, 1]]
    assert logprobs.exp().flatten().tolist() == pytest.approx([5 / 8, 2 / 8])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("tokens_per_chunk", [1, 4, 100])
def test_values_and_gradients_equal_plain_log_softmax(monkeypatch, temperature, tokens_per_chunk):
    monkeypatch.setattr(fused_logprobs, "CHUNK_BYTES", tokens_per_chunk * V * FLOAT_BYTES)
    hidden_NH, weight_VH, candidates_NK = problem()
    ours = fused_candidate_logprobs(hidden_NH, weight_VH, candidates_NK, temperature)
    theirs = plain(hidden_NH, weight_VH, candidates_NK, temperature)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    theirs = gradients(theirs, hidden_NH, weight_VH)
    torch.testing.assert_close(gradients(ours, hidden_NH, weight_VH), theirs, rtol=1e-5, atol=1e-5)


def test_gradients_equal_finite_differences():
    hidden_NH, weight_VH, candidates_NK = problem()
    upstream_NK = torch.linspace(-1, 2, N * K, dtype=torch.float64).view(N, K)
    fused = gradients(fused_candidate_logprobs(hidden_NH, weight_VH, candidates_NK, 1.3), hidden_NH, weight_VH)
    for position, gradient in enumerate(fused):
        direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(position))

        def loss(shift, position=position, direction=direction):
            moved = [hidden_NH.detach().double(), weight_VH.detach().double()]
            moved[position] = moved[position] + shift * direction.double()
            return float((plain(*moved, candidates_NK, 1.3) * upstream_NK).sum())

        slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("count", [1, 5, V])
def test_the_likeliest_tokens_are_those_of_the_whole_distribution(count):
    hidden_NH, weight_VH, _ = problem()
    tokens_NK, logprobs_NK = fused_top_k(hidden_NH, weight_VH, count, 0.8)
    logprobs_NV = (hidden_NH.double() @ weight_VH.double().T / 0.8).log_softmax(-1)
    assert torch.equal(tokens_NK, logprobs_NV.topk(count).indices)
    torch.testing.assert_close(logprobs_NK.double(), logprobs_NV.topk(count).values.detach(), rtol=1e-5, atol=1e-5)
    assert not logprobs_NK.requires_grad


def test_the_logits_of_all_tokens_never_exist_at_once(monkeypatch):
    hidden_NH, weight_VH, candidates_NK = problem()
    monkeypatch.setattr(fused_logprobs, "CHUNK_BYTES", 4 * V * FLOAT_BYTES)
    sizes, compute_logits = [], module.chunk_logits

    def record(*arguments):
        logits = compute_logits(*arguments)
        sizes.append(logits.numel())
        return logits

    monkeypatch.setattr(module, "chunk_logits", record)
    logprobs_NK = fused_candidate_logprobs(hidden_NH, weight_VH, candidates_NK, 1.0)
    saved = sum(tensor.numel() for tensor in logprobs_NK.grad_fn.saved_tensors)
    logprobs_NK.sum().backward()
    assert max(sizes) == 4 * V and sum(sizes) == 2 * N * V
    assert saved == N * H + V * H + N * K + N, "only inputs, candidates and normalisers are kept"


def test_bfloat16_inputs_give_float32_values_and_bfloat16_gradients():
    hidden_NH, weight_VH, candidates_NK = problem(torch.bfloat16)
    ours = fused_candidate_logprobs(hidden_NH, weight_VH, candidates_NK, 1.0)
    assert ours.dtype == torch.float32
    exact = plain(hidden_NH, weight_VH, candidates_NK, 1.0)
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=0.05)
    pairs = zip(gradients(ours, hidden_NH, weight_VH), gradients(exact, hidden_NH, weight_VH), strict=True)
    for gradient, exact_gradient in pairs:
        assert gradient.dtype == torch.bfloat16
        assert (gradient - exact_gradient).norm() < 0.02 * exact_gradient.norm()
