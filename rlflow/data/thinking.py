"""Thinking (`<think>…</think>`) in answers: what a template opens, what of it is history, and whether it is closed."""

import re
from collections.abc import Sequence

from rlflow.data.messages import Message

_TAG = re.compile(r"<(/?)think>")
_OPENED = re.compile(r"<think>\s*(?:</think>\s*)?\Z")


def opened_thinking(prompt: str) -> str:
    """The thinking block that a rendered prompt ends with, open or empty; an answer to it begins with that text."""
    found = _OPENED.search(prompt)
    return found[0] if found else ""


def is_balanced(answer: str) -> bool:
    """Whether every `<think>` is closed before the next one, and none is closed that was not opened."""
    depth = 0
    for closing in _TAG.findall(answer):
        depth += -1 if closing else 1
        if depth not in (0, 1):
            return False
    return depth == 0


def without_old_thinking(messages: Sequence[Message]) -> list[Message]:
    """The messages, with the assistant turns before the last user or tool turn cut down to what follows their thinking.

    As Qwen3's template, and ms-swift for every model, render history for inference.
    """
    last = max((i for i, message in enumerate(messages) if message["role"] in ("user", "tool")), default=-1)
    return [_without_thinking(message) if i < last else message for i, message in enumerate(messages)]


def _without_thinking(message: Message) -> Message:
    text = message["content"]
    if message["role"] != "assistant" or "</think>" not in text:
        return message
    return {**message, "content": text.rpartition("</think>")[2].strip()}
