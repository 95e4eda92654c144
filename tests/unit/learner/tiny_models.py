"""Models small enough for unit tests."""

from typing import Any

import torch

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "initializer_range": 0.2,
}


def tiny_qwen3(*, tied: bool = True, attention: str = "eager") -> Any:
    """A random Qwen3 with a vocabulary of 40, in float32."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        **SHAPE,
        tie_word_embeddings=tied,
    )
    config._attn_implementation = attention
    torch.manual_seed(0)
    return Qwen3ForCausalLM(config)


def tiny_qwen3_moe() -> Any:
    """A random Qwen3-MoE of four experts, in float32."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        **SHAPE,
        moe_intermediate_size=16,
        num_experts=4,
        num_experts_per_tok=2,
    )
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    return Qwen3MoeForCausalLM(config)
