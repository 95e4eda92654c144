"""What is compiled for the GPU equals plain torch in float64 or one sequence at a time."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from rlflow.algorithms import fused_logprobs as module
from rlflow.algorithms.fused_logprobs import Slopes, fused_logprobs
from rlflow.learner.attention import Segments, segment_attention

N, H, V = 300, 64, 5003
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
LENGTHS = {"different": [3, 200, 64, 1, 77], "equal and round": [128] * 3, "equal": [77] * 3}


def error(value, expected):
    """Relative, in the norm."""
    return float((value.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("upstream", ["different", "expanded"])
def test_fused_logprobs_equal_plain_ones(monkeypatch, dtype, upstream):
    monkeypatch.setattr(module, "CHUNK_BYTES", 100 * V * dtype.itemsize)
    generator = torch.Generator("cuda").manual_seed(0)
    hidden_NH = torch.randn(N, H, device="cuda", generator=generator).to(dtype).requires_grad_()
    weight_VH = (0.3 * torch.randn(V, H, device="cuda", generator=generator)).to(dtype).requires_grad_()
    targets_N = torch.randint(V, (N,), device="cuda", generator=generator)
    scores = fused_logprobs(hidden_NH, weight_VH, targets_N, 0.7)
    grads_N = torch.linspace(-1, 2, N, device="cuda") if upstream == "different" else torch.ones((), device="cuda").expand(N)
    ours = torch.autograd.grad(scores.logprobs_N, [hidden_NH, weight_VH], grads_N)
    logits_NV = hidden_NH.double() @ weight_VH.double().T / 0.7
    plain_NV = logits_NV.log_softmax(-1)
    plain_N = plain_NV.gather(-1, targets_N[:, None])[:, 0]
    theirs = torch.autograd.grad(plain_N, [hidden_NH, weight_VH], grads_N.double(), retain_graph=True)
    assert error(scores.logprobs_N, plain_N) < ROUNDING[dtype]
    assert error(scores.entropy_N, -(plain_NV.exp() * plain_NV).sum(-1)) < ROUNDING[dtype]
    assert error(scores.mean_logprobs_N, plain_NV.mean(-1)) < ROUNDING[dtype]
    for gradient, expected in zip(ours, theirs, strict=True):
        assert error(gradient, expected) < ROUNDING[dtype]


@pytest.mark.parametrize("dtype", ROUNDING)
def test_gradients_computed_with_the_scores_equal_those_computed_afterwards(monkeypatch, dtype):
    monkeypatch.setattr(module, "CHUNK_BYTES", 100 * V * dtype.itemsize)
    generator = torch.Generator("cuda").manual_seed(0)
    hidden_NH = torch.randn(N, H, device="cuda", generator=generator).to(dtype).requires_grad_()
    weight_VH = (0.3 * torch.randn(V, H, device="cuda", generator=generator)).to(dtype).requires_grad_()
    targets_N = torch.randint(V, (N,), device="cuda", generator=generator)
    weights_N = torch.linspace(0, 2, N, device="cuda")
    gradients = []
    for slopes in (None, Slopes(-0.8 * weights_N, -0.2 * weights_N)):
        scores = fused_logprobs(hidden_NH, weight_VH, targets_N, 0.7, slopes)
        loss = -(weights_N * (0.8 * scores.logprobs_N + 0.2 * scores.mean_logprobs_N)).sum()
        gradients.append(torch.autograd.grad(2 * loss, [hidden_NH, weight_VH]))
    for at_once, afterwards in zip(*gradients, strict=True):
        assert error(at_once, afterwards) < ROUNDING[dtype]


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_packed_sequences_attend_to_themselves_only(lengths):
    generator = torch.Generator("cuda").manual_seed(1)
    tensors = [
        torch.randn(1, heads, sum(lengths), 64, device="cuda", generator=generator).bfloat16().requires_grad_()
        for heads in (4, 2, 2)
    ]
    segments = Segments.from_lengths(lengths, torch.device("cuda"))
    output, _ = segment_attention(torch.nn.Module(), *tensors, None, scaling=0.2, rlflow_segments=segments)
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    parts = zip(*(tensor.split(lengths, dim=2) for tensor in exact), strict=True)
    alone = [scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.2, enable_gqa=True) for q, k, v in parts]
    expected = torch.cat(alone, dim=2).transpose(1, 2)
    assert error(output, expected) < ROUNDING[torch.bfloat16]
    upstream = torch.randn(expected.shape, device="cuda", generator=generator)
    ours = torch.autograd.grad(output, tensors, upstream.bfloat16())
    theirs = torch.autograd.grad(expected, exact, upstream.double())
    for gradient, wanted in zip(ours, theirs, strict=True):
        assert error(gradient, wanted) < ROUNDING[torch.bfloat16]
