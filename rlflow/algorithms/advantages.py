"""Group-relative advantages and terminal rewards: scalars a completion."""

import statistics
from collections.abc import Sequence
from typing import Literal

EPSILON = 1e-4
"""Added to the standard deviation (ms-swift, TRL)."""
ZERO_STD = 1e-8
"""Rewards closer together than this count as equal."""


def group_advantages(
    rewards_GK: Sequence[Sequence[float | None]], scale: Literal["group", "batch", "none"]
) -> list[list[float | None]]:
    """Advantages of GRPO (Shao et al. 2024, eq. 3): the reward minus its group's mean, divided by a standard deviation.

    `rewards_GK` holds one row a group. `None` marks a sample without reward: it is left out of the statistics and has no
    advantage. `scale`: `group` divides by the group's standard deviation (ddof 1), `batch` by that of all rewards, `none`
    not at all (Dr. GRPO, Liu et al. 2025).
    """
    batch_std = _std([r for group in rewards_GK for r in group if r is not None])
    return [_one_group(group, scale, batch_std) for group in rewards_GK]


def has_spread(rewards_K: Sequence[float | None]) -> bool:
    """Whether a group's rewards differ, so that it teaches anything."""
    known = [r for r in rewards_K if r is not None]
    return bool(known) and max(known) - min(known) > ZERO_STD


def terminal_reward(reward: float, *, has_ended: bool, missing_eos_penalty: float | None) -> float:
    """The completion's reward, less the penalty if it holds no end-of-sequence token (TRL's `missing_eos_penalty`)."""
    return reward if has_ended or missing_eos_penalty is None else reward - missing_eos_penalty


def _one_group(rewards_K: Sequence[float | None], scale: str, batch_std: float) -> list[float | None]:
    known = [r for r in rewards_K if r is not None]
    if not known:
        return [None] * len(rewards_K)
    mean = statistics.fmean(known)
    divisor = {"group": _std(known) + EPSILON, "batch": batch_std + EPSILON, "none": 1.0}[scale]
    return [None if r is None else (r - mean) / divisor for r in rewards_K]


def _std(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
