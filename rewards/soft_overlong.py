"""Penalty for completions near the length limit (DAPO, eq. 13)."""

from rlflow.rewards.api import RewardSample
from rlflow.spec.rewards import SoftOverlongSpec


class SoftOverlongReward:
    """0 up to `max_tokens - cache_tokens`, then linearly down to -1 at `max_tokens`, and -1 beyond."""

    def __init__(self, spec: SoftOverlongSpec) -> None:
        assert spec.max_tokens is not None, "with_token_limits fills max_tokens in"
        self._free_tokens = spec.max_tokens - spec.cache_tokens
        self._cache_tokens = spec.cache_tokens

    def __call__(self, sample: RewardSample) -> float:
        excess = (sample.completion_tokens - self._free_tokens) / self._cache_tokens
        return -min(max(excess, 0.0), 1.0)
