"""From scored groups to what the learner does with them: advantages, filters and the batch plan. Scalars only."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from rlflow.algorithms.advantages import group_advantages, has_spread
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


@dataclass(frozen=True, slots=True)
class PolicyBatch:
    """What the learner group trains on."""

    samples: tuple[PolicySample, ...]
    plan: BatchPlan
    """Its sequence numbers index `samples`."""
    advantages: tuple[tuple[float | None, ...], ...]
    """By group and completion, before filters; for logs."""
    groups_dropped_fraction: float


@dataclass(frozen=True, slots=True)
class PolicyBatchSettings:
    """How a batch is made of scored groups."""

    loss_type: LossType
    scale_rewards: Literal["group", "batch", "none"]
    filter_zero_std: bool
    filter_overlong: bool
    optimizer_steps: int
    epochs: int
    max_completion_tokens: int
    num_ranks: int
    micro_batch_tokens: int
    packing: bool


def plan_policy_batch(groups: Sequence[ScoredGroup], settings: PolicyBatchSettings) -> PolicyBatch:
    """Advantages and the batch plan of one sampled batch. The plan has no steps if filters leave nothing to train on."""
    advantages = group_advantages([g.rewards for g in groups], settings.scale_rewards)
    kept = [i for i, g in enumerate(groups) if has_spread(g.rewards) or not settings.filter_zero_std]
    samples: list[PolicySample] = []
    counted: dict[int, list[int]] = {i: [] for i in kept}  # group -> its samples, masked ones included
    masked: set[int] = set()
    for i in kept:
        for k, advantage in enumerate(advantages[i]):
            if advantage is None:
                continue
            if settings.filter_overlong and groups[i].is_truncated[k]:
                masked.add(len(samples))
            counted[i].append(len(samples))
            samples.append(PolicySample(i, k, groups[i].prompt_tokens + groups[i].completion_tokens[k], advantage))
    trained_tokens = [groups[s.group].completion_tokens[s.completion] for s in samples]
    shares = _split([counted[i] for i in kept if counted[i]], settings.optimizer_steps)
    steps = [_plan(share, masked, samples, trained_tokens, len(shares), settings) for share in shares if set(share) - masked]
    return PolicyBatch(
        samples=tuple(samples),
        plan=BatchPlan(tuple(steps) * settings.epochs),
        advantages=tuple(tuple(row) for row in advantages),
        groups_dropped_fraction=1 - len(kept) / len(groups),
    )


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
    )


def _split(groups: list[list[int]], parts: int) -> list[list[int]]:
    """Whole groups in order, spread over at most `parts` shares of nearly equal size."""
    parts = min(parts, len(groups))
    bounds = [len(groups) * p // parts for p in range(parts + 1)] if parts else [0]
    return [[i for group in groups[a:b] for i in group] for a, b in pairwise(bounds)]
