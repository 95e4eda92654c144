"""From scored groups to what the learner does with them: advantages, filters and the batch plan. Scalars only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from rlflow.algorithms.advantages import (
    AdvantageEstimator,
    Advantages,
    Scale,
    gdpo_advantages,
    has_spread,
    policy_advantages,
    terminal_reward,
)
from rlflow.algorithms.batch_plan import BatchPlan, StepPlan, plan_step
from rlflow.algorithms.normalizers import LossType, policy_token_weights


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """The scalars of one prompt's completions."""

    prompt_id: int
    prompt_tokens: int
    completion_tokens: tuple[int, ...]
    is_truncated: tuple[bool, ...]
    rewards: tuple[float | None, ...]
    """Weighted sum of a completion's rewards; None leaves it out."""
    reward_parts: tuple[tuple[float | None, ...], ...] = ()
    """By completion and reward, unweighted: what `gdpo` needs."""
    kl: tuple[float | None, ...] = ()
    """KL estimate of a completion, summed over its tokens, where it lowers the reward; empty: it does not."""


@dataclass(frozen=True, slots=True)
class PolicySample:
    """One completion in the batch."""

    group: int
    """Index of its group."""
    completion: int
    """Index in the group."""
    num_tokens: int
    """Prompt and completion."""
    advantage: float
    """Of the completion; in a batch without advantages its reward, with the penalty for a missing end."""


@dataclass(frozen=True, slots=True)
class PolicyBatch:
    """What the learner group trains on."""

    samples: tuple[PolicySample, ...]
    plan: BatchPlan
    """Its sequence numbers index `samples`."""
    advantages: tuple[tuple[float | None, ...], ...]
    """By group and completion, for logs; 0 in groups that are left out."""
    groups_dropped_fraction: float


@dataclass(frozen=True, slots=True)
class PolicyBatchSettings:
    """How a batch is made of scored groups."""

    loss_type: LossType
    scale_rewards: Scale
    filter_zero_std: bool
    filter_overlong: bool
    optimizer_steps: int
    epochs: int
    max_completion_tokens: int
    num_ranks: int
    micro_batch_tokens: int
    packing: bool
    sequence_parallel: int = 1
    advantage_estimator: AdvantageEstimator = "grpo"
    reward_weights: tuple[float, ...] = ()
    """Of the rewards in `ScoredGroup.reward_parts`."""
    kl_in_reward: float = 0.0
    """Coefficient of `ScoredGroup.kl`."""


def plan_policy_batch(groups: Sequence[ScoredGroup], settings: PolicyBatchSettings) -> PolicyBatch:
    """Advantages and the batch plan of one sampled batch. The plan has no steps if filters leave nothing to train on."""
    kept = [i for i, g in enumerate(groups) if has_spread(g.rewards) or not settings.filter_zero_std]
    advantages = _advantages(groups, kept, settings)
    samples, steps = _plan_steps(groups, kept, advantages, settings)
    return PolicyBatch(
        samples=samples,
        plan=BatchPlan(steps * settings.epochs),
        advantages=tuple(tuple(row) for row in advantages),
        groups_dropped_fraction=1 - len(kept) / len(groups),
    )


def plan_rewarded_batch(
    groups: Sequence[ScoredGroup], settings: PolicyBatchSettings, missing_eos_penalty: float | None
) -> PolicyBatch:
    """The batch plan where the learner makes advantages of rewards (PPO). Completions without reward are left out."""
    rewards = [
        [
            None if reward is None else terminal_reward(reward, has_ended=not cut, missing_eos_penalty=missing_eos_penalty)
            for reward, cut in zip(group.rewards, group.is_truncated, strict=True)
        ]
        for group in groups
    ]
    return _without_advantages(groups, rewards, settings)


def plan_unrewarded_batch(groups: Sequence[ScoredGroup], settings: PolicyBatchSettings) -> PolicyBatch:
    """The batch plan of all completions, where rewards play no part (distillation)."""
    return _without_advantages(groups, [[0.0] * len(group.rewards) for group in groups], settings)


def _without_advantages(
    groups: Sequence[ScoredGroup], values: Sequence[Sequence[float | None]], settings: PolicyBatchSettings
) -> PolicyBatch:
    samples, steps = _plan_steps(groups, list(range(len(groups))), values, settings)
    return PolicyBatch(
        samples=samples,
        plan=BatchPlan(steps * settings.epochs),
        advantages=tuple((None,) * len(group.rewards) for group in groups),
        groups_dropped_fraction=0.0,
    )


def _plan_steps(
    groups: Sequence[ScoredGroup], kept: list[int], values: Sequence[Sequence[float | None]], settings: PolicyBatchSettings
) -> tuple[tuple[PolicySample, ...], tuple[StepPlan, ...]]:
    """Samples with their advantages (or rewards), and the optimiser steps of one epoch."""
    samples: list[PolicySample] = []
    counted: dict[int, list[int]] = {i: [] for i in kept}  # group -> its samples, masked ones included
    masked: set[int] = set()
    for i in kept:
        for k, value in enumerate(values[i]):
            if value is None:
                continue
            if settings.filter_overlong and groups[i].is_truncated[k]:
                masked.add(len(samples))
            counted[i].append(len(samples))
            samples.append(PolicySample(i, k, groups[i].prompt_tokens + groups[i].completion_tokens[k], value))
    trained_tokens = [groups[s.group].completion_tokens[s.completion] for s in samples]
    shares = _split([counted[i] for i in kept if counted[i]], settings.optimizer_steps)
    steps = [_plan(share, masked, samples, trained_tokens, len(shares), settings) for share in shares if set(share) - masked]
    return tuple(samples), tuple(steps)


def plan_scoring(groups: Sequence[ScoredGroup], settings: PolicyBatchSettings) -> PolicyBatch:
    """A batch of one step that holds every sample that may be trained, for a scoring pass: its advantages mean nothing."""
    plain: dict[str, Any] = {"advantage_estimator": "grpo", "scale_rewards": "none", "kl_in_reward": 0.0}
    return plan_policy_batch(groups, replace(settings, filter_overlong=False, optimizer_steps=1, epochs=1, **plain))


def with_kl(groups: Sequence[ScoredGroup], batch: PolicyBatch, kl: Mapping[int, float]) -> list[ScoredGroup]:
    """The groups with `kl`, given by the sample numbers of `batch`."""
    by_place = {(sample.group, sample.completion): kl[number] for number, sample in enumerate(batch.samples)}
    return [replace(g, kl=tuple(by_place.get((i, k)) for k in range(len(g.rewards)))) for i, g in enumerate(groups)]


def _advantages(groups: Sequence[ScoredGroup], kept: Sequence[int], settings: PolicyBatchSettings) -> Advantages:
    """The statistics of the batch are those of the kept groups."""
    advantages: Advantages = [[None if r is None else 0.0 for r in group.rewards] for group in groups]
    rewards = [_penalised(groups[i], settings.kl_in_reward) for i in kept]
    if settings.advantage_estimator == "gdpo":
        known = gdpo_advantages([_parts(groups[i]) for i in kept], settings.reward_weights)
    else:
        known = policy_advantages(rewards, settings.advantage_estimator, settings.scale_rewards)
    for i, group_advantages in zip(kept, known, strict=True):
        advantages[i] = group_advantages
    return advantages


def _penalised(group: ScoredGroup, coefficient: float) -> Sequence[float | None]:
    if not coefficient:
        return group.rewards
    return [None if r is None or kl is None else r - coefficient * kl for r, kl in zip(group.rewards, group.kl, strict=True)]


def _parts(group: ScoredGroup) -> list[Sequence[float | None]]:
    """A sample that is left out has no rewards at all: one of them may have failed."""
    return [[None] * len(parts) if r is None else parts for r, parts in zip(group.rewards, group.reward_parts, strict=True)]


def _plan(
    share: list[int],
    masked: set[int],
    samples: list[PolicySample],
    trained_tokens: list[int],
    num_steps: int,
    settings: PolicyBatchSettings,
) -> StepPlan:
    weights = policy_token_weights(
        settings.loss_type,
        [0 if i in masked else trained_tokens[i] for i in share],
        step_sequences=len(share),
        batch_tokens=sum(trained_tokens),
        steps_per_batch=num_steps,
        max_completion_tokens=settings.max_completion_tokens,
    )
    trained = [i for i in share if i not in masked]
    return plan_step(
        trained,
        [s.num_tokens for s in samples],
        dict(zip(share, weights, strict=True)),
        num_ranks=settings.num_ranks,
        micro_batch_tokens=settings.micro_batch_tokens,
        packing=settings.packing,
        sequence_parallel=settings.sequence_parallel,
    )


def _split(groups: list[list[int]], parts: int) -> list[list[int]]:
    """Whole groups in order, spread over at most `parts` shares of nearly equal size."""
    parts = min(parts, len(groups))
    bounds = [len(groups) * p // parts for p in range(parts + 1)] if parts else [0]
    return [[i for group in groups[a:b] for i in group] for a, b in pairwise(bounds)]
