"""What a reward plugin sees: the sample to score and the `reward` decorator."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, overload

from rlflow.spec.rewards import NAME_PATTERN

T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class RewardSample:
    """One completion with all that is known about it."""

    prompt_id: int
    """Identifies the prompt within the run; the completions of one group share it."""
    sample_index: int
    """Position within the group, from 0."""
    messages: list[dict[str, Any]]
    """The prompt as role/content messages, without the completion."""
    prompt: str
    """The prompt as the model saw it, chat template applied."""
    completion: str
    """Text of the answer, special tokens left out; with what the prompt began of it: a thinking block that the template opens, a
    response prefix."""
    completion_tokens: int
    """Length of the completion in tokens."""
    completion_token_ids: list[int]
    """Token ids of the completion."""
    finish_reason: str
    """`stop`, or `length` when the token limit cut the completion."""
    columns: dict[str, Any]
    """All columns of the data row."""


@dataclass(frozen=True, slots=True)
class RewardMark:
    """What the decorator noted on a function or class."""

    name: str | None
    batched: bool


MARK_ATTRIBUTE = "__rlflow_reward__"


@overload
def reward(target: T, /) -> T: ...
@overload
def reward(*, name: str | None = None, batched: bool = False) -> Callable[[T], T]: ...
def reward(target: Any = None, /, *, name: str | None = None, batched: bool = False) -> Any:
    """Mark a function, coroutine function or class with `__call__` as a reward.

    It is called with one `RewardSample` and returns a number, or None to leave the sample out. With
    `batched=True` it is called with a list of samples and returns a list as long. A class is built once with
    the spec's `options` as keyword arguments. The marked object itself is returned unchanged.

    Raises ValueError if `name` is no identifier (it becomes part of metric names).
    """
    if name is not None and re.match(NAME_PATTERN, name) is None:
        raise ValueError(f"reward name {name!r} must consist of letters, digits and underscores")

    mark = RewardMark(name=name, batched=batched)
    return partial(_attach, mark) if target is None else _attach(mark, target)


def _attach(mark: RewardMark, target: T) -> T:
    setattr(target, MARK_ATTRIBUTE, mark)
    return target


def mark_of(target: Any) -> RewardMark | None:
    """The decorator's mark on a function, class or instance of a marked class; None if there is none."""
    return getattr(target, MARK_ATTRIBUTE, None)
