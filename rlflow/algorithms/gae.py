"""Token rewards, advantages and returns of PPO, one sequence at a time; and whitening over a batch that ranks share."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

EPSILON = 1e-8
"""Added to the variance in whitening (TRL)."""


def token_rewards(reward: float, kl_n: Tensor, kl_coefficient: float) -> Tensor:
    """-kl_coefficient x KL at each of n >= 1 tokens, and the completion's reward at the last (Ziegler et al. 2019, eq. 2)."""
    rewards_n = -kl_coefficient * kl_n
    rewards_n[-1] += reward
    return rewards_n


def generalized_advantages(rewards_n: Tensor, values_n: Tensor, gamma: float, lambda_: float) -> Tensor:
    """Generalised advantage estimates [n] (Schulman et al. 2016, eq. 16).

    A_t = sum over l >= 0 of (gamma lambda)^l delta_{t+l}, with delta_t = r_t + gamma V_{t+1} - V_t. `values_n` holds the value of
    the state in which each token is chosen; after the last token it is 0, for completions that were cut off too (TRL, verl).
    """
    following_n = torch.cat([values_n[1:], values_n.new_zeros(1)])
    deltas = (rewards_n + gamma * following_n - values_n).tolist()
    total = 0.0
    for t in reversed(range(len(deltas))):
        deltas[t] = total = deltas[t] + gamma * lambda_ * total
    return values_n.new_tensor(deltas)


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean and variance (ddof 1) of values that lie on several ranks."""

    count: float
    mean: float
    variance: float

    @classmethod
    def from_sums(cls, sums_3: Tensor) -> "Moments":
        """From `power_sums`, added up over the ranks."""
        count, total, squares = sums_3.tolist()
        mean = total / count
        return cls(count, mean, max(0.0, squares - count * mean * mean) / max(1.0, count - 1))

    def whiten(self, values_n: Tensor, *, shift_mean: bool = True) -> Tensor:
        """(value - mean) / sqrt(variance + 1e-8), or the same with the mean added again (TRL's `masked_whiten`)."""
        whitened_n = (values_n - self.mean) * (self.variance + EPSILON) ** -0.5
        return whitened_n if shift_mean else whitened_n + self.mean


def power_sums(parts: Iterable[Tensor]) -> Tensor:
    """Count, sum and sum of squares of the values of all parts, float64 [3]: what ranks add up."""
    values = [part.double() for part in parts]
    flat = torch.cat(values) if values else torch.zeros(0, dtype=torch.float64)
    return torch.stack([flat.new_tensor(float(flat.numel())), flat.sum(), (flat * flat).sum()])
