"""Reward for keeping to a format."""

import re

from rlflow.rewards.api import RewardSample
from rlflow.spec.rewards import FormatSpec


class FormatReward:
    """1.0 if the whole completion matches the pattern, else 0.0; `.` also matches newlines."""

    def __init__(self, spec: FormatSpec) -> None:
        self._pattern = re.compile(spec.pattern, re.DOTALL)

    def __call__(self, sample: RewardSample) -> float:
        return float(self._pattern.fullmatch(sample.completion) is not None)
