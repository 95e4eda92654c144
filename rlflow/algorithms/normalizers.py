"""How token losses become one number: a weight for each sequence's tokens.

Every reduction used by GRPO and SFT is a weighted sum over tokens, with one weight a sequence that depends on lengths only.
The controller computes the weights over the whole step, so the loss does not depend on micro-batches, ranks or packing.
"""

from collections.abc import Sequence
from typing import Literal

LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo"]


def policy_token_weights(
    loss_type: LossType,
    step_tokens: Sequence[int],
    *,
    step_sequences: int,
    batch_tokens: int,
    steps_per_batch: int,
    max_completion_tokens: int,
) -> list[float]:
    """Weight of each token of each sequence in an optimiser step; loss = sum over tokens of weight x token loss.

    `step_tokens`: trained tokens of each sequence of the step (0: all masked). `step_sequences`: sequences of the step, masked
    ones included. `batch_tokens`: tokens of the whole sampled batch, which `steps_per_batch` optimiser steps share.

    - grpo: mean over sequences of the mean over tokens (Shao et al. 2024)
    - bnpo: mean over the tokens of the step
    - dapo: sum over tokens / (tokens of the batch / steps), a batch-wide token mean (Yu et al. 2025, eq. 8)
    - dr_grpo: sum over tokens / (sequences x longest allowed completion) (Liu et al. 2025)
    """
    if loss_type == "grpo":
        return [1.0 / (step_sequences * count) if count else 0.0 for count in step_tokens]
    denominators = {
        "bnpo": sum(step_tokens),
        "dapo": batch_tokens / steps_per_batch,
        "dr_grpo": step_sequences * max_completion_tokens,
    }
    denominator = denominators[loss_type]
    return [1.0 / denominator if count else 0.0 for count in step_tokens]
