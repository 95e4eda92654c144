"""Base weights in 4 bits below adapters (QLoRA, Dettmers et al. 2023), through bitsandbytes, which is optional."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from rlflow.errors import SpecError


def check_bitsandbytes() -> None:
    """Raise `SpecError` if the package is missing."""
    if find_spec("bitsandbytes") is None:
        raise SpecError(
            "model.lora.quantization: 4-bit weights need bitsandbytes, which is not installed: pip install 'rlflow[qlora]'"
        )


def quantization_config(dtype: torch.dtype) -> Any:
    """What transformers' `from_pretrained` needs to load linear layers as NF4, their scales quantised too; the output head and
    embeddings stay. Products are computed in `dtype`.
    """
    check_bitsandbytes()
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def keep_layout(model: nn.Module) -> None:
    """Do not let layers rearrange their weights for CPUs with AVX512-BF16 when they compute without gradient (bitsandbytes 0.50):
    the exporter could not read them, and training would compute otherwise than scoring.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # pyright: ignore[reportArgumentType]


def is_quantised(parameter: nn.Parameter) -> bool:
    """Whether it holds packed 4-bit values (uint8 [n/2, 1]) instead of a matrix."""
    return getattr(parameter, "quant_state", None) is not None


def dequantised(parameter: nn.Parameter) -> Tensor:
    """The matrix that the layer computes with, in the data type that it was loaded in."""
    from bitsandbytes.functional import dequantize_4bit  # pyright: ignore[reportMissingImports]

    return dequantize_4bit(parameter.data, parameter.quant_state)  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def without_quantiser(causal_lm: Any) -> Iterator[None]:
    """Inside, `save_pretrained` writes the weights that it is given, and a configuration that says nothing of quantisation.

    transformers would otherwise write the quantised ones in their place.
    """
    if getattr(causal_lm, "hf_quantizer", None) is None:
        yield
        return
    kept = causal_lm.hf_quantizer, causal_lm.config.quantization_config
    causal_lm.hf_quantizer = None
    del causal_lm.config.quantization_config
    try:
        yield
    finally:
        causal_lm.hf_quantizer, causal_lm.config.quantization_config = kept
