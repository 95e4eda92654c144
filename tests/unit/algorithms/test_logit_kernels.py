"""The Triton kernels, run by Triton's interpreter: the same source that a GPU compiles.

In a process of its own, because Triton decides at its import whether it interprets.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlflow.algorithms.fused_logprobs import _PlainRowOperations

N, V = 7, 5000
TEMPERATURE = 0.7
UPSTREAM = {
    "different": (torch.linspace(-1, 2, N), torch.linspace(3, -1, N)),
    "expanded": (torch.tensor(-0.5).expand(N), torch.tensor(0.25).expand(N)),  # what a sum's backward pass gives
}


def results(operations):
    """Statistics of some rows, and their gradients for each upstream."""
    generator = torch.Generator().manual_seed(0)
    logits_NV = 5 * torch.randn(N, V, generator=generator)
    targets_N = torch.randint(V, (N,), generator=generator)
    targets_N[0] = logits_NV[0].argmax()
    out = {name: torch.zeros(N) for name in ("logprobs_N", "means_N", "entropies_N", "normalizers_N")}
    out["correct_N"] = torch.zeros(N, dtype=torch.bool)
    operations.row_statistics(logits_NV.clone(), targets_N, TEMPERATURE, **out)
    for name, upstream in UPSTREAM.items():
        out[name] = logits_NV.clone()
        operations.logits_to_gradient(out[name], targets_N, out["normalizers_N"], *upstream, TEMPERATURE)
        entropy = (out["entropies_N"], upstream[0].flip(0))
        out[f"{name}_entropy"] = logits_NV.clone()
        operations.logits_to_gradient(out[f"{name}_entropy"], targets_N, out["normalizers_N"], *upstream, TEMPERATURE, entropy)
    return out


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    file = tmp_path_factory.mktemp("kernels") / "results.pt"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    subprocess.run([sys.executable, __file__, str(file)], env=environment, check=True)
    return torch.load(file)


@pytest.mark.parametrize(
    "name", ["logprobs_N", "means_N", "entropies_N", "normalizers_N", "correct_N", *UPSTREAM, *(f"{u}_entropy" for u in UPSTREAM)]
)
def test_the_kernels_equal_plain_torch(interpreted, name):
    plain = results(_PlainRowOperations)
    torch.testing.assert_close(interpreted[name], plain[name], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain["different"], plain["different_entropy"], atol=1e-2)
    assert plain["correct_N"].tolist() == [True] + [False] * (N - 1)


if __name__ == "__main__":
    from rlflow.algorithms import logit_kernels

    torch.save(results(logit_kernels), sys.argv[1])
