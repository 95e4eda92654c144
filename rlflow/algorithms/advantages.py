"""Advantages and terminal rewards, from scalar rewards of groups of completions.

Everywhere, `rewards_GK` holds one row a group, and `None` marks a sample without reward: it is left out of all statistics and has
no advantage.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import Literal

EPSILON = 1e-4
"""Added to the standard deviation (ms-swift, TRL)."""
GDPO_EPSILON = 1e-8
"""Added to the standard deviation of a single reward (ms-swift)."""
ZERO_STD = 1e-8
"""Rewards closer together than this count as equal."""

AdvantageEstimator = Literal["grpo", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "gdpo"]
Scale = Literal["group", "batch", "none"]
Values = Sequence[Sequence[float | None]]
Advantages = list[list[float | None]]


def policy_advantages(rewards_GK: Values, estimator: AdvantageEstimator = "grpo", scale: Scale = "group") -> Advantages:
    """Advantages by any estimator but gdpo, which `gdpo_advantages` computes from the rewards one by one.

    - grpo: the reward minus its group's mean (Shao et al. 2024, eq. 3)
    - rloo: the reward minus the mean of the group's other rewards, K / (K - 1) times that of grpo (Ahmadian et al. 2024)
    - reinforce_plus_plus: the reward minus the mean of the batch (Hu et al. 2025)
    - reinforce_plus_plus_baseline: as grpo; the deviation below is then that of these differences (Hu et al. 2025)

    `scale`: `group` divides by the standard deviation (ddof 1) of the group's rewards, `batch` by that of the batch, `none` not
    at all (Dr. GRPO, Liu et al. 2025).
    """
    batch = _known(rewards_GK)
    if estimator == "reinforce_plus_plus":
        mean = statistics.fmean(batch) if batch else 0.0
        centred = [_map(group, lambda r: r - mean) for group in rewards_GK]
    else:
        centred = [_centred(group, leave_one_out=estimator == "rloo") for group in rewards_GK]
    if scale == "none":
        return centred
    spread = _std(_known(centred) if estimator == "reinforce_plus_plus_baseline" else batch)
    return [
        _divided(advantages, (_std(_known([group])) if scale == "group" else spread) + EPSILON)
        for group, advantages in zip(rewards_GK, centred, strict=True)
    ]


def gdpo_advantages(rewards_GKR: Sequence[Sequence[Sequence[float | None]]], weights_R: Sequence[float]) -> Advantages:
    """Each of R rewards normalised within its group by itself, then their weighted sum normalised over the batch, so that a
    reward of small spread is not drowned by the others (GDPO, Liu et al. 2026).

    A reward that gives a sample no value is left out of that sample's sum; a sample without any has no advantage.
    """
    sums = [_weighted_sums(group, weights_R) for group in rewards_GKR]
    known = _known(sums)
    mean, divisor = (statistics.fmean(known) if known else 0.0), _std(known) + EPSILON
    return [_map(group, lambda total: (total - mean) / divisor) for group in sums]


def has_spread(rewards_K: Sequence[float | None]) -> bool:
    """Whether a group's rewards differ, so that it teaches anything."""
    known = [r for r in rewards_K if r is not None]
    return bool(known) and max(known) - min(known) > ZERO_STD


def _weighted_sums(rewards_KR: Sequence[Sequence[float | None]], weights_R: Sequence[float]) -> list[float | None]:
    """Of one group: each sample's weighted sum of its normalised rewards."""
    columns_RK = [[sample[r] for sample in rewards_KR] for r in range(len(weights_R))]
    normalised_RK = [_divided(_centred(column), _std(_known([column])) + GDPO_EPSILON) for column in columns_RK]
    terms_KR = [[column[k] for column in normalised_RK] for k in range(len(rewards_KR))]
    return [_weighted_sum(terms_R, weights_R) for terms_R in terms_KR]


def _weighted_sum(terms_R: Sequence[float | None], weights_R: Sequence[float]) -> float | None:
    known = [weight * term for weight, term in zip(weights_R, terms_R, strict=True) if term is not None]
    return sum(known) if known else None


def _centred(rewards_K: Sequence[float | None], *, leave_one_out: bool = False) -> list[float | None]:
    """Minus the group's mean, or minus that of the others: 0 for a sample that has no others."""
    known = _known([rewards_K])
    mean = statistics.fmean(known) if known else 0.0
    factor = len(known) / (len(known) - 1) if leave_one_out and len(known) > 1 else 1.0
    return _map(rewards_K, lambda r: factor * (r - mean))


def _divided(values: Sequence[float | None], divisor: float) -> list[float | None]:
    return _map(values, lambda value: value / divisor)


def _map(values: Sequence[float | None], function: Callable[[float], float]) -> list[float | None]:
    return [None if value is None else function(value) for value in values]


def _known(values: Values) -> list[float]:
    return [value for group in values for value in group if value is not None]


def terminal_reward(reward: float, *, has_ended: bool, missing_eos_penalty: float | None) -> float:
    """The completion's reward, less the penalty if it holds no end-of-sequence token (TRL's `missing_eos_penalty`)."""
    return reward if has_ended or missing_eos_penalty is None else reward - missing_eos_penalty


def _std(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
