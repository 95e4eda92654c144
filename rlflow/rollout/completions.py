"""What rollout produces: groups of completions of one prompt."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

FinishReason = Literal["stop", "length", "abort"]
MOST_ATTEMPTS = 5
"""Of sampling a group that is lost with a node each time."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled completion of n tokens."""

    token_ids: np.ndarray
    """int32 [n], with the end-of-turn token if the model produced it."""
    logprobs: np.ndarray | None
    """float32 [n] in nats, under the distribution sampled from; None if not asked for."""
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class CompletionGroup:
    """All completions of one prompt, with their token arrays: lives in the object store, never in the controller."""

    slot: int
    prompt_id: int
    attempt: int
    weight_version: int
    prompt_ids: np.ndarray
    """int32 [p]."""
    completions: tuple[Completion, ...]

    def summary(self) -> "GroupSummary":
        """The scalars of the group."""
        return GroupSummary(
            slot=self.slot,
            prompt_id=self.prompt_id,
            attempt=self.attempt,
            weight_version=self.weight_version,
            prompt_tokens=len(self.prompt_ids),
            completion_tokens=tuple(len(c.token_ids) for c in self.completions),
            finish_reasons=tuple(c.finish_reason for c in self.completions),
        )


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """What the controller knows of a group."""

    slot: int
    prompt_id: int
    attempt: int
    weight_version: int
    prompt_tokens: int
    completion_tokens: tuple[int, ...]
    finish_reasons: tuple[FinishReason, ...]


@dataclass(frozen=True, slots=True)
class GroupRequest:
    """One prompt to sample."""

    slot: int
    """Position in the batch; unique there, while a prompt may occur twice."""
    prompt_id: int
    prompt_ids: np.ndarray
    num_completions: int
    attempt: int = 0
    seed: int | None = None
    """Seed of the first completion; completion i uses seed + i."""
    with_logprobs: bool = False
    full_distribution: bool = False
    """Ignore top_p and top_k: for comparing log-probabilities with the learner."""
    temperature: float | None = None
    """Instead of the spec's temperature (evaluation); 0: greedy."""
    top_p: float | None = None
    """Instead of the spec's (evaluation)."""
    max_tokens: int | None = None
    """Instead of the spec's longest completion (evaluation)."""
    top_k: int | None = None
    """Instead of the spec's (chat)."""
    repetition_penalty: float | None = None
    """Instead of the spec's (chat)."""
