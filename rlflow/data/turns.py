"""Where the assistant turns stand in the text that a chat template renders.

A template may strip, drop or add text, so turns are not searched for by their content. The conversation is
rendered a second time with a mark after each message's content: the marks show where each content ends, and
the text without them must be the first rendering. A turn begins after what the generation prompt would give.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlflow.data.chat import render
from rlflow.data.messages import Message
from rlflow.errors import DataError
from rlflow.spec.data import DataSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_UNMAPPED = (
    "the chat template rewrites its messages so that assistant turns cannot be found in the text; "
    "set data.chat_template to another template"
)


@dataclass(frozen=True, slots=True)
class Turn:
    """An assistant turn: the message's index, and the characters [start, end) a model generates for it.

    `end` is behind the end-of-turn token; what separates turns after it is not part of the turn.
    """

    message: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class TurnFrame:
    """What a template writes around an assistant turn.

    `opener` begins every turn, `prefill` follows it in a generation prompt (an empty think block, say),
    `closer` is the end-of-turn token ("" if the template has none).
    """

    opener: str
    prefill: str
    closer: str


def probe_frame(tokenizer: "PreTrainedTokenizerBase", spec: DataSpec) -> TurnFrame:
    """Find a template's frame by rendering short conversations."""
    first, answer, second = (chr(0xE010 + number) for number in range(3))
    user = {"role": "user", "content": first}
    assistant = {"role": "assistant", "content": answer}
    later = {"role": "user", "content": second}
    between = _cut(render(tokenizer, [user, assistant, later], spec, for_generation=False), first, answer)
    prompt = _cut(render(tokenizer, [user], spec, for_generation=True), first)
    unfinished = _cut(render(tokenizer, [user], spec, for_generation=False), first)
    tail = _cut(render(tokenizer, [user, assistant], spec, for_generation=False), answer)
    shared = _share_start(prompt, between)
    header = shared.removeprefix(unfinished)
    return TurnFrame(header or shared, prompt[len(shared) :], _find_first_token(tokenizer, tail))


def locate_turns(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], spec: DataSpec, frame: TurnFrame
) -> tuple[str, list[Turn]]:
    """The rendered conversation and its assistant turns, in order.

    Raises:
        DataError: the template refuses the messages, or rewrites them so that turns cannot be mapped.
    """
    text = render(tokenizer, messages, spec, for_generation=False)
    ends = _find_content_ends(tokenizer, messages, spec, text)
    turns: list[Turn] = []
    cursor = 0
    for number, (message, content_end) in enumerate(zip(messages, ends, strict=True)):
        if message["role"] == "assistant":
            start = _find_start(text, frame, cursor, len(text) if content_end is None else content_end)
            end = _find_end(text, frame, start, content_end, message["content"])
            turns.append(Turn(number, start, end))
        cursor = turns[-1].end if content_end is None else content_end
    return text, turns


def _find_start(text: str, frame: TurnFrame, cursor: int, limit: int) -> int:
    """Where the turn after `cursor` starts, behind its opener and what a generation prompt would give."""
    found = text.find(frame.opener, cursor, limit)
    if found < 0:
        raise DataError(_UNMAPPED)
    start = found + len(frame.opener)
    return start + len(frame.prefill) if text.startswith(frame.prefill, start, limit) else start


def _find_end(text: str, frame: TurnFrame, start: int, content_end: int | None, content: str) -> int:
    """Behind the end-of-turn token; where tool calls follow the content, its end is not known."""
    if content_end is None:
        closed = text.find(frame.closer, start) if frame.closer else -1
        if closed < 0:
            raise DataError(_UNMAPPED)
        return closed + len(frame.closer)
    closing = re.compile(r"\s*" + re.escape(frame.closer)).match(text, content_end) if frame.closer else None
    if closing:
        return closing.end()
    space = content[len(content.rstrip()) :]
    return content_end + len(space) if text.startswith(space, content_end) else content_end


def _find_content_ends(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], spec: DataSpec, text: str
) -> list[int | None]:
    mark = next(mark for mark in map(chr, range(0xE000, 0xF8FF)) if mark not in text)
    marked = [_mark_message(message, mark) for message in messages]
    pieces = render(tokenizer, marked, spec, for_generation=False).split(mark)
    is_marked = [mark in message["content"] for message in marked]
    if len(pieces) != sum(is_marked) + 1 or "".join(pieces) != text:
        raise DataError(_UNMAPPED)
    ends: list[int | None] = []
    length = 0
    remaining = iter(pieces)
    for has_mark in is_marked:
        length += len(next(remaining)) if has_mark else 0
        ends.append(length if has_mark else None)
    return ends


def _mark_message(message: Message, mark: str) -> Message:
    """The message with a mark after its content, before trailing space, which a template may strip."""
    content = message["content"]
    if message["role"] == "assistant" and message.get("tool_calls"):
        return message
    kept = content.rstrip()
    return message | {"content": kept + mark + content[len(kept) :]}


def _find_first_token(tokenizer: "PreTrainedTokenizerBase", tail: str) -> str:
    """The added token with which the text behind an answer begins, or ""."""
    tokens = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    return max((token for token in tokens if tail.lstrip().startswith(token)), key=len, default="")


def _share_start(text: str, other: str) -> str:
    """The longest text both begin with."""
    different = (number for number, (a, b) in enumerate(zip(text, other, strict=False)) if a != b)
    return text[: next(different, min(len(text), len(other)))]


def _cut(text: str, start: str, end: str | None = None) -> str:
    """What stands between two characters of a probe, or behind the first."""
    _, found, rest = text.partition(start)
    if not found or (end is not None and end not in rest):
        raise DataError(_UNMAPPED)
    return rest if end is None else rest.partition(end)[0]
