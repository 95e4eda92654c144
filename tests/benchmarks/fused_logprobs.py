"""Fused log-probabilities against the plain formula: time and memory, forward and backward.

usage: python tests/benchmarks/fused_logprobs.py [--tokens 16384] [--vocabulary 151936] [--hidden 1024] [--out FILE]
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from common import report

from rlflow.algorithms.fused_logprobs import fused_logprobs

WARM_UP, TIMED = 3, 10


def main() -> None:
    """Both ways on the same numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    hidden = torch.randn(arguments.tokens, arguments.hidden, device=device, dtype=dtype)
    weight = torch.randn(arguments.vocabulary, arguments.hidden, device=device, dtype=dtype) * 0.05
    targets = torch.randint(arguments.vocabulary, (arguments.tokens,), device=device)
    ways: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "plain": lambda h, w: torch.log_softmax((h @ w.T).float(), dim=-1).gather(-1, targets[:, None]).squeeze(-1),
        "fused": lambda h, w: fused_logprobs(h, w, targets, 1.0).logprobs_N,
    }
    results, values = [], {}
    for name, way in ways.items():
        figures, values[name] = measure(way, hidden, weight)
        results.append({"way": name, **figures})
    for i, quantity in enumerate(("logprobs", "grad_hidden", "grad_weight")):
        exact, ours = values["plain"][i], values["fused"][i]
        results[1][f"{quantity}_error"] = float((exact - ours).norm() / exact.norm())
    report(f"{arguments.tokens} tokens x {arguments.vocabulary} vocabulary x {arguments.hidden} hidden", results, arguments.out)


def measure(way: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, weight: Tensor) -> tuple[dict[str, float], list[Tensor]]:
    """Median time, extra memory at the peak (gradients included), and what came out (on the CPU)."""
    seconds, peak, out = [], 0.0, []
    for _ in range(WARM_UP + TIMED):
        leaves = [hidden.detach().requires_grad_(), weight.detach().requires_grad_()]
        if hidden.is_cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        begin = time.perf_counter()
        logprobs = way(*leaves)
        logprobs.sum().backward()
        if hidden.is_cuda:
            torch.cuda.synchronize()
            peak = (torch.cuda.max_memory_allocated() - before) / 2**30
        seconds.append(time.perf_counter() - begin)
        out = [logprobs.detach().cpu(), *(leaf.grad.float().cpu() for leaf in leaves if leaf.grad is not None)]
        del logprobs, leaves
    return {"seconds": statistics.median(seconds[WARM_UP:]), "extra_peak_gib": peak}, out


if __name__ == "__main__":
    main()
