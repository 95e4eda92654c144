if not __name__.startswith("rlflow."):
    raise ImportError(f"import rlflow.{__name__}, not {__name__}: one module must not be loaded under two names")

from rlflow.rewards.api import RewardSample, reward
from rlflow.rewards.scorer import RewardFailure, RewardScorer, SampleScore, check_plugins

__all__ = ["RewardFailure", "RewardSample", "RewardScorer", "SampleScore", "check_plugins", "reward"]
