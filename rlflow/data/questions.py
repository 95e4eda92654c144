"""Prompts that a finished model answers: in chat and in batch inference."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlflow.data.chat import add_system, prompt_messages, render
from rlflow.data.messages import Message
from rlflow.data.thinking import opened_thinking, without_old_thinking
from rlflow.errors import DataError
from rlflow.spec.data import DataSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Question:
    """A rendered prompt."""

    messages: list[Message]
    """What was asked, with the system prompt, and with all thinking; to be kept with the answer."""
    text: str
    prompt_ids: list[int]
    answer_start: str
    """The answer's text begins with this: the thinking block that the template opens, and the response prefix."""


def ask(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], spec: DataSpec, response_prefix: str = "") -> Question:
    """The prompt for an answer to the last user or tool turn.

    The thinking of earlier turns is left out of what the model reads. Raises `DataError` if the template refuses the messages.
    """
    asked = prompt_messages(messages, spec)
    text = render(tokenizer, without_old_thinking(asked), spec, for_generation=True)
    start = opened_thinking(text) + response_prefix
    text += response_prefix
    return Question(asked, text, tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], start)


def check_length(num_tokens: int, spec: DataSpec) -> None:
    """Raises `DataError` if a prompt of batch inference is too long."""
    if num_tokens > spec.max_prompt_tokens:
        raise DataError(f"the prompt has {num_tokens} tokens, data.max_prompt_tokens is {spec.max_prompt_tokens}")


def given_answer(messages: Sequence[Message], spec: DataSpec) -> str | None:
    """The text of the answer that a row ends with and that `ask` leaves out."""
    rest = add_system(messages, spec)[len(prompt_messages(messages, spec)) :]
    return rest[-1]["content"] if rest else None
