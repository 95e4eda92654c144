"""From a sampled group to what its rewards see."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlflow.rewards.api import RewardSample
from rlflow.rollout.completions import CompletionGroup


@dataclass(frozen=True, slots=True)
class PromptRow:
    """The row a prompt came from, as rewards see it."""

    messages: list[dict[str, Any]]
    text: str
    columns: dict[str, Any]
    answer_start: str = ""
    """What the prompt begins of every answer, such as the thinking block that the template opens."""


def reward_samples(row: PromptRow, group: CompletionGroup, texts: Sequence[str]) -> list[RewardSample]:
    """One sample for each of the group's completions; `texts` are whole answers, with what the prompt begins of them."""
    return [
        RewardSample(
            prompt_id=group.prompt_id,
            sample_index=index,
            messages=row.messages,
            prompt=row.text,
            completion=text,
            completion_tokens=len(completion.token_ids),
            completion_token_ids=completion.token_ids.tolist(),
            finish_reason=completion.finish_reason,
            columns=row.columns,
        )
        for index, (text, completion) in enumerate(zip(texts, group.completions, strict=True))
    ]
