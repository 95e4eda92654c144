"""Accuracy scaled by a cosine of the length (Yeo et al. 2025, "Demystifying Long CoT", as in ms-swift)."""

import math

from rlflow.rewards.accuracy import AccuracyReward
from rlflow.rewards.api import RewardSample
from rlflow.spec.rewards import AccuracySpec, CosineSpec


class CosineReward:
    """From `min_len_value` at 0 tokens to `max_len_value` at `max_tokens`, constant beyond.

    `end + (start - end) (1 + cos(pi t / T)) / 2` with t the completion's tokens. Samples whose gold answer
    cannot be read are left out.
    """

    def __init__(self, spec: CosineSpec) -> None:
        assert spec.max_tokens is not None, "with_token_limits fills max_tokens in"
        self._accuracy = AccuracyReward(AccuracySpec(column=spec.column))
        self._max_tokens = spec.max_tokens
        self._correct = (spec.min_len_value_correct, spec.max_len_value_correct)
        self._wrong = (spec.min_len_value_wrong, spec.max_len_value_wrong)

    def __call__(self, sample: RewardSample) -> float | None:
        accuracy = self._accuracy(sample)
        if accuracy is None:
            return None
        start, end = self._correct if accuracy == 1.0 else self._wrong
        # Not clamped, the cosine would rise again beyond max_tokens.
        progress = min(sample.completion_tokens / self._max_tokens, 1.0)
        return end + (start - end) * (1.0 + math.cos(math.pi * progress)) / 2.0
