"""Which activations are kept for the backward pass, and which are computed again."""

from collections import deque
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

_KEPT = frozenset(
    {
        "aten::mm",
        "aten::addmm",
        "aten::bmm",
        "aten::_grouped_mm",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "torch_attn::_varlen_attn",
    }
)
"""Matrix products and attention: nearly all of a layer's work, in about two thirds of its activations."""


def checkpoint_activations(model: Any, mode: Literal["auto", "full", "selective", "none"]) -> None:
    """Set a transformers model up. `auto` is decided by the plan; left as it is, it means full."""
    if mode == "none":
        return
    keep_expensive = {"context_fn": _keep_expensive} if mode == "selective" else {}
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False, **keep_expensive})


def _keep_expensive() -> tuple[TorchDispatchMode, TorchDispatchMode]:
    """The contexts of a layer's forward pass and of its recomputation.

    torch's own selective checkpointing counts every operation, and ZeRO-3's hooks do not run the same ones twice: here only
    the kept operations are looked at.
    """
    kept: deque[Any] = deque()
    return _Keep(kept), _Reuse(kept)


class _Keep(TorchDispatchMode):
    def __init__(self, kept: deque[Any]) -> None:
        super().__init__()
        self._kept = kept

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if _is_kept(func):
            # Detached: autograd is about to hang the graph on `output` itself, which would then keep itself alive.
            self._kept.append(tree_map_only(Tensor, Tensor.detach, output))
        return output


class _Reuse(TorchDispatchMode):
    def __init__(self, kept: deque[Any]) -> None:
        super().__init__()
        self._kept = kept

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._kept.popleft() if _is_kept(func) else func(*args, **(kwargs or {}))


def _is_kept(func: Any) -> bool:
    return isinstance(func, torch._ops.OpOverload) and func.name().partition(".")[0] in _KEPT
