"""One sampled batch, always the same: 12 prompts with 4 completions each, over a vocabulary of 60.

A policy loss is a sum of terms of both signs; the seed is one with which it does not nearly cancel, so that a relative
tolerance of the sum means something.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from rlflow.algorithms.policy_batch import PolicyBatch, PolicyBatchSettings, ScoredGroup, plan_policy_batch
from rlflow.learner.sequences import TrainSequence

MAX_COMPLETION_TOKENS = 40
_SEED = 21
_GROUPS, _COMPLETIONS, _VOCABULARY = 12, 4, 60


@dataclass(frozen=True)
class StoredBatch:
    """The batch as a plan and as the learner's sequences, which the plan numbers."""

    plan: PolicyBatch
    sequences: dict[int, TrainSequence]


def stored_batch(**settings: Any) -> StoredBatch:
    """The batch, planned with these `PolicyBatchSettings`; two optimiser steps unless they say otherwise."""
    random = np.random.default_rng(_SEED)
    prompts = [random.integers(3, _VOCABULARY, random.integers(3, 13)) for _ in range(_GROUPS)]
    completions = [
        [random.integers(1, _VOCABULARY, random.integers(1, MAX_COMPLETION_TOKENS + 1)) for _ in range(_COMPLETIONS)]
        for _ in prompts
    ]  # fmt: skip
    logprobs = [[random.normal(-4.1, 0.6, len(tokens)) for tokens in group] for group in completions]
    rewards = random.integers(0, 2, (_GROUPS, _COMPLETIONS)) + random.random((_GROUPS, _COMPLETIONS)).round(1)
    groups = [
        ScoredGroup(
            prompt_id=index,
            prompt_tokens=len(prompts[index]),
            completion_tokens=tuple(map(len, group)),
            is_truncated=tuple(len(tokens) == MAX_COMPLETION_TOKENS for tokens in group),
            rewards=tuple(rewards[index].tolist()),
        )
        for index, group in enumerate(completions)
    ]
    plan = plan_policy_batch(groups, PolicyBatchSettings(**_DEFAULTS | settings))
    sequences = {
        number: _sequence(
            prompts[sample.group],
            completions[sample.group][sample.completion],
            logprobs[sample.group][sample.completion],
            sample.advantage,
        )
        for number, sample in enumerate(plan.samples)
    }
    return StoredBatch(plan, sequences)


_DEFAULTS: dict[str, Any] = {
    "loss_type": "dapo",
    "scale_rewards": "group",
    "filter_zero_std": False,
    "filter_overlong": False,
    "optimizer_steps": 2,
    "epochs": 1,
    "max_completion_tokens": MAX_COMPLETION_TOKENS,
    "num_ranks": 1,
    "micro_batch_tokens": 512,
    "packing": True,
}


def _sequence(prompt: Any, completion: Any, logprobs: Any, advantage: float) -> TrainSequence:
    return TrainSequence(
        token_ids=np.concatenate([prompt, completion]),
        loss_weights=np.repeat(np.array([0, 1], np.float32), [len(prompt), len(completion)]),
        advantage=advantage,
        sampler_logprobs=np.concatenate([np.full(len(prompt), np.nan), logprobs]).astype(np.float32),
    )
