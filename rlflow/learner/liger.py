"""Liger's fused Triton kernels for norms, rotary embeddings and SwiGLU (Hsu et al. 2024)."""

from importlib.util import find_spec
from typing import Any, Literal

import torch

from rlflow.errors import LearnerError


def use_liger_kernels(model: Any, wanted: bool | Literal["auto"]) -> bool:
    """Patch a transformers model; returns whether it was. Raises `LearnerError` if they are wanted and cannot be had.

    `auto`: on a GPU, if liger-kernel is installed and knows the model's type. The output head keeps its own fusion, and experts
    the implementation that the spec chose, which Liger's SwiGLU would replace.
    """
    if wanted is False:
        return False
    obstacle = _obstacle(model.config.model_type)
    if obstacle is not None:
        if wanted is True:
            raise LearnerError(f"learner.liger_kernel: {obstacle}")
        return False
    from liger_kernel.transformers.monkey_patch import (  # pyright: ignore[reportMissingImports]  (GPU machines have it)
        _apply_liger_kernel_to_instance,
    )

    kept = {"swiglu": False} if getattr(model.config, "num_experts_per_tok", None) else {}
    _apply_liger_kernel_to_instance(model, cross_entropy=False, fused_linear_cross_entropy=False, **kept)
    return True


def _obstacle(model_type: str) -> str | None:
    if not torch.cuda.is_available():
        return "the kernels need a GPU"
    if find_spec("liger_kernel") is None:
        return "the package liger-kernel is not installed"
    from liger_kernel.transformers.monkey_patch import (  # pyright: ignore[reportMissingImports]
        MODEL_TYPE_TO_APPLY_LIGER_FN,
    )

    return None if model_type in MODEL_TYPE_TO_APPLY_LIGER_FN else f"there are none for model type {model_type}"
