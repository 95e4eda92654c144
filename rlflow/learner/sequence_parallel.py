"""Ranks that share sequences: each has a part of the tokens, and in attention a part of the heads (DeepSpeed Ulysses).

Jacobs et al. 2023, arXiv 2309.14509. Outside attention a token needs no other, so only scores are brought together at the end.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rlflow.errors import LearnerError
from rlflow.learner.attention import segment_attention
from rlflow.learner.process_group import RankInfo

NAME = "rlflow_ulysses"


class SequenceParallel:
    """A rank's place in the group of neighbours that share its sequences. Building it is collective."""

    def __init__(self, size: int, info: RankInfo) -> None:
        self.size, self.rank = size, info.rank % size
        for first in range(0, info.world_size, size):
            group = dist.new_group(list(range(first, first + size)))
            if first == info.rank - self.rank:
                self._group = group

    def attach(self, model: Any) -> None:
        """Let the model's attention exchange tokens for heads. Raises `LearnerError` if heads cannot be divided."""
        from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface

        config = model.config
        heads, key_heads = config.num_attention_heads, config.num_key_value_heads
        if heads % self.size or (key_heads % self.size and self.size % key_heads):
            raise LearnerError(
                f"learner.sequence_parallel: {heads} attention heads and {key_heads} key heads cannot be divided by {self.size}"
            )
        ulysses = UlyssesSPAttentionHF(
            attn=segment_attention,
            batch_size=1,
            attn_head_count=heads,
            attn_head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
            kv_head_count=key_heads,
            num_hidden_layers=config.num_hidden_layers,
            process_group=self._group,  # pyright: ignore[reportArgumentType]
            seq_length_is_variable=True,
        )

        def attention(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            return ulysses(module, *args, **kwargs)

        AttentionInterface.register(NAME, attention)
        AttentionMaskInterface.register(NAME, lambda *_, **__: None)
        model.set_attn_implementation(NAME)

    def own(self, values_BT: Tensor) -> Tensor:
        """This rank's part of rows of T tokens, [B, T / size]."""
        return values_BT.chunk(self.size, dim=1)[self.rank].contiguous()

    def own_tokens(self, source_N: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Which of N trained tokens this rank predicts, and where in its part, int64 [n]; the whole row has `num_tokens`."""
        part = num_tokens // self.size
        own_n = torch.nonzero(source_N // part == self.rank).flatten()
        return own_n, source_N[own_n] - self.rank * part

    def together(self, values_n: Tensor, own_n: Tensor, count: int) -> Tensor:
        """What all ranks of the group know, float32 [..., N], from each one's [..., n]; gradients go back to all of them."""
        values_N = values_n.new_zeros(*values_n.shape[:-1], count).index_copy(-1, own_n, values_n)
        return _SumOverRanks.apply(values_N, self._group)


class _SumOverRanks(torch.autograd.Function):
    """All-reduce; its gradient is the all-reduce of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = values.contiguous().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None
