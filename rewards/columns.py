"""Calling functions written for TRL or ms-swift: `f(completions, **columns) -> list`, all by keyword."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

from rlflow.errors import RewardError
from rlflow.rewards.api import RewardSample

Shape = Literal["text", "messages"]


class ColumnFunction:
    """Presents a TRL or ms-swift reward as one that takes a list of samples.

    The function gets every argument its signature names, and all there is if it takes `**kwargs`.
    """

    def __init__(self, function: Callable[..., Any], shape: Shape) -> None:
        self._function = function
        self._shape: Shape = shape
        self._parameters = inspect.signature(function).parameters.values()

    def __call__(self, samples: Sequence[RewardSample]) -> Any:
        """What the function returns for the batch (an awaitable if it is a coroutine function)."""
        arguments = batch_arguments(samples, self._shape)
        self._check_required(arguments)
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in self._parameters):
            return self._function(**arguments)
        named = {parameter.name for parameter in self._parameters}
        return self._function(**{key: value for key, value in arguments.items() if key in named})

    def _check_required(self, arguments: dict[str, list[Any]]) -> None:
        for parameter in self._parameters:
            variadic = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            if not variadic and parameter.default is parameter.empty and parameter.name not in arguments:
                raise RewardError(
                    f"it takes '{parameter.name}', which is no column of the data (there are: {', '.join(sorted(arguments))})"
                )


def takes_columns(function: Callable[..., Any]) -> bool:
    """Whether the signature looks like TRL's: it names `completions` or takes `**kwargs`."""
    parameters = inspect.signature(function).parameters.values()
    return any(p.name == "completions" or p.kind is p.VAR_KEYWORD for p in parameters)


def batch_arguments(samples: Sequence[RewardSample], shape: Shape) -> dict[str, list[Any]]:
    """Arguments by name, each a list with one entry per sample.

    Names are TRL's (`prompts, completions, completion_ids`) and ms-swift's (`messages` with the completion
    as last turn, `response_token_ids, finish_reason, is_truncated, prompt_id, request_id`). A row column that
    some rows lack is None there; a column with one of these names is hidden by them.
    """
    names = dict.fromkeys(key for sample in samples for key in sample.columns)
    columns = {name: [sample.columns.get(name) for sample in samples] for name in names}
    replies = [[{"role": "assistant", "content": sample.completion}] for sample in samples]
    as_text = shape == "text"
    return columns | {
        "prompts": [sample.prompt if as_text else sample.messages for sample in samples],
        "completions": [sample.completion for sample in samples] if as_text else replies,
        "completion_ids": [sample.completion_token_ids for sample in samples],
        "messages": [sample.messages + reply for sample, reply in zip(samples, replies, strict=True)],
        "response_token_ids": [sample.completion_token_ids for sample in samples],
        "finish_reason": [sample.finish_reason for sample in samples],
        "is_truncated": [sample.finish_reason == "length" for sample in samples],
        "prompt_id": [sample.prompt_id for sample in samples],
        "request_id": [f"{sample.prompt_id}-{sample.sample_index}" for sample in samples],
    }
