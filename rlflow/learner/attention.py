"""Attention over packed rows: each sequence of a row attends to itself only, without a mask of T x T.

Registered with transformers under the name `rlflow`. On CUDA it calls torch's variable-length attention, or cuDNN's for
sequences of one length; on CPU it runs scaled-dot-product attention once for each distinct length. Padded rows need no mask
either: rows are padded on the right, so causal attention never looks at padding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from rlflow.errors import LearnerError
from rlflow.learner.transfer import to_device

NAME = "rlflow"
_ROUND_LENGTH = 64
_FASTEST_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


@dataclass(frozen=True, slots=True)
class Segments:
    """Where the sequences of a packed row of T tokens lie."""

    boundaries_S: Tensor
    """int32 [S + 1]: starts of the S sequences, and T."""
    longest: int
    is_uniform: bool
    """Whether all have one length, and a round one: such lengths come again, and cuDNN prepares anew for every shape."""
    by_length: tuple[tuple[int, Tensor], ...]
    """(length, positions int64 [n, length]) for each distinct length; empty on a GPU, whose kernel does not need it."""

    @classmethod
    def from_lengths(cls, lengths: Sequence[int], device: torch.device) -> "Segments":
        """Sequences of these lengths, one after the other."""
        starts = torch.tensor([0, *lengths]).cumsum(0)
        groups: dict[int, list[int]] = {}
        if device.type == "cpu":
            for start, length in zip(starts.tolist(), lengths, strict=False):
                groups.setdefault(length, []).append(start)
        by_length = tuple(
            (length, (torch.tensor(begin)[:, None] + torch.arange(length)).to(device)) for length, begin in groups.items()
        )
        return cls(to_device(starts.to(torch.int32), device), max(lengths), _are_uniform(lengths), by_length)


def _are_uniform(lengths: Sequence[int]) -> bool:
    return min(lengths) == max(lengths) and lengths[0] % _ROUND_LENGTH == 0


def register() -> None:
    """Make `attn_implementation="rlflow"` known to transformers."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, segment_attention)
    AttentionMaskInterface.register(NAME, _no_mask)


def segment_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    rlflow_segments: Segments | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each sequence; query [B, heads, T, D], key and value [B, key heads, T, D] -> [B, T, heads, D].

    Raises `LearnerError` for a sliding window shorter than the row.
    """
    window = kwargs.get("sliding_window") or getattr(module, "sliding_window", None)
    longest = rlflow_segments.longest if rlflow_segments else query.shape[2]
    if window is not None and window < longest:
        raise LearnerError(f"sliding-window attention ({window} tokens) is not supported for sequences of {longest} tokens")
    if rlflow_segments is None:
        output = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
    elif query.is_cuda and rlflow_segments.is_uniform:
        return _uniform(query, key, value, rlflow_segments.longest, scaling), None
    elif query.is_cuda:
        return _varlen(query, key, value, rlflow_segments, scaling), None
    else:
        output = _by_length(query, key, value, rlflow_segments, scaling)
    return output.transpose(1, 2), None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None


def _uniform(query: Tensor, key: Tensor, value: Tensor, length: int, scaling: float | None) -> Tensor:
    """Sequences of one length are a batch: cuDNN's kernels are 1.6 times as fast as `varlen_attn`'s on an H100 (there, its own
    ragged layout gives wrong gradients: torch 2.11, cuDNN 9.19)."""
    # Cut up where tokens come before heads, as the projections wrote them: the gradients, which cuDNN lays out its own way, are
    # then copied once and not twice.
    query, key, value = (x.transpose(1, 2).unflatten(1, (-1, length))[0].transpose(1, 2) for x in (query, key, value))
    with sdpa_kernel(_FASTEST_FIRST, set_priority=True):
        output = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
    return output.transpose(1, 2).flatten(0, 1)[None]


def _varlen(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float | None) -> Tensor:
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    bounds, longest = segments.boundaries_S, segments.longest
    attend, options = _torch_varlen()
    return attend(query, key, value, bounds, bounds, longest, longest, scale=scaling, window_size=(-1, 0), **options)[None]


@cache
def _torch_varlen() -> tuple[Callable[..., Any], dict[str, Any]]:
    """torch 2.11 takes grouped-query heads as they are and does not know the argument that 2.13 wants for them."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn, {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}


def _by_length(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float | None) -> Tensor:
    outputs, positions = [], []
    for _, positions_nL in segments.by_length:
        q, k, v = (x[0][:, positions_nL].transpose(0, 1) for x in (query, key, value))
        output = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
        outputs.append(output.transpose(0, 1).flatten(1, 2))
        positions.append(positions_nL.flatten())
    order = torch.argsort(torch.cat(positions))
    return torch.cat(outputs, dim=1)[None, :, order]
