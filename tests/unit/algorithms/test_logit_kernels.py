"""The Triton kernels, run by Triton's interpreter: the same source that a GPU compiles."""

import importlib

import pytest
import torch

from rlflow.algorithms.fused_logprobs import _PlainRowOperations

N, V = 7, 5000
TEMPERATURE = 0.7


@pytest.fixture(scope="module")
def kernels():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        yield importlib.import_module("rlflow.algorithms.logit_kernels")


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    logits_NV = 5 * torch.randn(N, V, generator=generator)
    targets_N = torch.randint(V, (N,), generator=generator)
    targets_N[0] = logits_NV[0].argmax()
    return logits_NV, targets_N


def statistics(operations, logits_NV, targets_N):
    out = {name: torch.zeros(N) for name in ("logprobs_N", "means_N", "entropies_N", "normalizers_N")}
    out["correct_N"] = torch.zeros(N, dtype=torch.bool)
    operations.row_statistics(logits_NV.clone(), targets_N, TEMPERATURE, **out)
    return out


def test_statistics_equal_the_plain_ones(kernels, problem):
    ours, plain = statistics(kernels, *problem), statistics(_PlainRowOperations, *problem)
    assert plain["correct_N"].tolist() == [True] + [False] * (N - 1)
    for name in plain:
        torch.testing.assert_close(ours[name], plain[name], rtol=1e-5, atol=1e-4, msg=name)


UPSTREAM = {
    "different": (torch.linspace(-1, 2, N), torch.linspace(3, -1, N)),
    "expanded": (torch.tensor(-0.5).expand(N), torch.tensor(0.25).expand(N)),  # what a sum's backward pass gives
}


@pytest.mark.parametrize("upstream", UPSTREAM.values(), ids=UPSTREAM)
def test_the_gradient_equals_the_plain_one(kernels, problem, upstream):
    logits_NV, targets_N = problem
    normalizers_N = statistics(_PlainRowOperations, *problem)["normalizers_N"]
    ours, plain = logits_NV.clone(), logits_NV.clone()
    kernels.logits_to_gradient(ours, targets_N, normalizers_N, *upstream, TEMPERATURE)
    _PlainRowOperations.logits_to_gradient(plain, targets_N, normalizers_N, *upstream, TEMPERATURE)
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)
