"""FlashAttention-4 for packed rows: kernels that vLLM brings along, and that compile at their first call (some seconds).

As operations of torch's library, so that selective checkpointing can keep their outputs. Source of the kernels: Dao-AILab's
flash-attention, `cute/interface.py`.
"""

from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

_KERNELS = "vllm.vllm_flash_attn.cute.interface"
_HOPPER = 9
_HEADS = (32, 64, 96, 128)
"""Widths of heads whose kernels compile for both ways (in vLLM 0.26)."""


def can_attend(query: Tensor) -> bool:
    """Whether the kernels are installed and can be used: in 16 bits, on Hopper, where they were measured."""
    if query.dtype not in (torch.bfloat16, torch.float16) or query.shape[-1] not in _HEADS:
        return False
    return torch.cuda.get_device_capability(query.device)[0] == _HOPPER and _kernels() is not None


def attend(query: Tensor, key: Tensor, value: Tensor, boundaries_S: Tensor, longest: int, scaling: float | None) -> Tensor:
    """Causal attention inside each sequence; query [T, heads, D], key and value [T, key heads, D] -> [T, heads, D].

    `boundaries_S`, `longest`: as in `Segments`.
    """
    return _forward(query, key, value, boundaries_S, longest, query.shape[-1] ** -0.5 if scaling is None else scaling)[0]


@cache
def _kernels() -> Any:
    try:
        return import_module(_KERNELS)
    except ImportError:
        return None


def _arguments(bounds: Tensor, longest: int, scaling: float) -> dict[str, Any]:
    lengths = {"cu_seqlens_q": bounds, "cu_seqlens_k": bounds, "max_seqlen_q": longest, "max_seqlen_k": longest}
    return {**lengths, "softmax_scale": scaling, "causal": True}


@torch.library.custom_op("rlflow::flash_attention_4", mutates_args=(), device_types="cuda")
def _forward(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scaling: float) -> tuple[Tensor, Tensor]:
    output, log_sum, *_ = _kernels()._flash_attn_fwd(query, key, value, return_lse=True, **_arguments(bounds, longest, scaling))
    return output, log_sum


@torch.library.custom_op("rlflow::flash_attention_4_backward", mutates_args=(), device_types="cuda")
def _backward(
    slope: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_sum: Tensor,
    bounds: Tensor,
    longest: int,
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor]:
    arguments = _arguments(bounds, longest, scaling)
    return tuple(_kernels()._flash_attn_bwd(query, key, value, output, slope, log_sum, **arguments)[:3])


def _remember(context: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, bounds, context.longest, context.scaling = inputs
    context.save_for_backward(query, key, value, *output, bounds)


def _gradients(context: Any, slope: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, output, log_sum, bounds = context.saved_tensors
    found = _backward(slope.contiguous(), query, key, value, output, log_sum, bounds, context.longest, context.scaling)
    return (*found, None, None, None)


_forward.register_autograd(_gradients, setup_context=_remember)
