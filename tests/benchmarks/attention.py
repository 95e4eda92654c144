"""Attention of packed rows, one layer, forward and backward: time, and how far the gradients are from float32's.

usage: python tests/benchmarks/attention.py [--ways rlflow varlen fa4] [--heads 16 8] [--head-dim 128] [--tokens 16384]
rlflow: what the learner runs (on a CPU the only one); varlen: torch's variable-length attention; fa4: the FlashAttention-4
kernels that vLLM brings along (0.26: their backward pass ends in an illegal instruction on an H100).
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

sys.path.insert(0, str(Path(__file__).parent))

from common import report

from rlflow.learner import attention
from rlflow.learner.attention import Segments, segment_attention

WARM_UP, TIMED = 3, 10


def main() -> None:
    """Every way on the same numbers; fa4 last, because it may leave the GPU unusable to the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ways", nargs="+", default=["rlflow", "varlen", "fa4"], choices=["rlflow", "varlen", "fa4"])
    parser.add_argument("--heads", type=int, nargs=2, default=[16, 8], help="of queries, of keys")
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cases = {name: Case.of(lengths, arguments, device) for name, lengths in rows(arguments.tokens).items()}
    results = []
    for way in arguments.ways if device.type == "cuda" else ["rlflow"]:
        for name, case in cases.items():
            results.append({"way": way, "row": name, **measure(way, case)})
            print(results[-1], flush=True)
    report(f"attention of {arguments.tokens} tokens, {arguments.heads} heads of {arguments.head_dim}", results, arguments.out)


@dataclass(frozen=True)
class Case:
    """A packed row in float32, and what plain attention makes of it."""

    lengths: list[int]
    inputs: list[Tensor]
    """Query, key and value [1, heads, T, D]."""
    slope: Tensor
    """The output's gradient [1, T, heads, D]."""
    expected: list[Tensor]

    @classmethod
    def of(cls, lengths: list[int], arguments: argparse.Namespace, device: torch.device) -> "Case":
        """Random numbers."""
        torch.manual_seed(0)
        (queries, keys), length, width = arguments.heads, sum(lengths), arguments.head_dim
        inputs = [torch.randn(1, count, length, width, device=device) for count in (queries, keys, keys)]
        slope = torch.randn(1, length, queries, width, device=device)
        return cls(lengths, inputs, slope, gradients(partial(one_by_one, lengths), inputs, slope))


def rows(tokens: int) -> dict[str, list[int]]:
    """Lengths of the sequences of a packed row: alike and round, alike, and as data have them."""
    generator, ragged = np.random.default_rng(0), []
    while sum(ragged) < tokens:
        ragged.append(min(int(generator.lognormal(5.5, 1.0)) + 16, tokens - sum(ragged)))
    short, uneven = max(16, tokens // 32), max(17, tokens // 32 + 41)
    return {
        "two long": [tokens // 2] * 2,
        "many alike": [short] * (tokens // short),
        "many alike, not round": [uneven] * (tokens // uneven),
        "log-normal": ragged,
    }


def one_by_one(lengths: list[int], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Plain attention of each sequence."""
    parts = zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
    outputs = [scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True) for q, k, v in parts]
    return torch.cat(outputs, dim=2).transpose(1, 2)


def gradients(way: Callable[..., Tensor], inputs: list[Tensor], slope: Tensor) -> list[Tensor]:
    """The output and its gradients by query, key and value."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = way(*leaves)
    output.backward(slope.to(output.dtype))
    return [output.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def flash_attention_4(query: Tensor, key: Tensor, value: Tensor, segments: Segments) -> Tensor:
    """The kernels as vLLM brings them."""
    from vllm.vllm_flash_attn.cute.interface import flash_attn_varlen_func

    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    bounds, longest = segments.boundaries_S, segments.longest
    lengths: dict[str, Any] = {"max_seqlen_q": longest, "max_seqlen_k": longest}
    output = flash_attn_varlen_func(query, key, value, cu_seqlens_q=bounds, cu_seqlens_k=bounds, causal=True, **lengths)
    return (output[0] if isinstance(output, tuple) else output)[None]


def measure(way: str, case: Case) -> dict[str, float]:
    """Median time in ms, and relative errors of output and gradients."""
    is_gpu = case.slope.is_cuda
    segments = Segments.from_lengths(case.lengths, case.slope.device)
    # Heads before tokens, but as the projections of a model write them: tokens before heads in memory.
    dtype = torch.bfloat16 if is_gpu else torch.float32
    inputs = [x.to(dtype).transpose(1, 2).contiguous().transpose(1, 2) for x in case.inputs]

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if way == "rlflow":
            return segment_attention(torch.nn.Module(), query, key, value, None, rlflow_segments=segments)[0]
        if way == "fa4":
            return flash_attention_4(query, key, value, segments)
        return attention._varlen(query, key, value, segments, None)

    seconds, found = [], []
    for _ in range(WARM_UP + TIMED):
        if is_gpu:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        found = gradients(run, inputs, case.slope)
        if is_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    names = ("output", "grad_query", "grad_key", "grad_value")
    errors = {f"{n}_error": float((a.float() - b).norm() / b.norm()) for n, a, b in zip(names, found, case.expected, strict=True)}
    return {"ms": 1000 * statistics.median(seconds[WARM_UP:]), **errors}


if __name__ == "__main__":
    main()
