"""Rows that say which answers are better: pairs of a chosen and a rejected answer, and answers with a label."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlflow.data.formats import RowFormat, detect_format, with_tools
from rlflow.data.messages import Message, check_conversation, read_messages, read_text
from rlflow.errors import DataError

_REJECTED_COLUMNS = ("rejected_messages", "rejected_response")
_PROMPT_COLUMNS = ("prompt", "query", "question")
_SYSTEM_COLUMNS = ("system", "system_prompt")


@dataclass(frozen=True, slots=True)
class Preference:
    """Two conversations that differ in their answers."""

    chosen: list[Message]
    rejected: list[Message]
    margin: float = 0.0
    """By how much the chosen one is better, on the scale of a reward model's scores."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """A conversation whose last answer is desirable or not."""

    messages: list[Message]
    is_desirable: bool


@dataclass(frozen=True, slots=True)
class PreferenceFormat:
    """Where a pair is read from: ms-swift's columns beside a conversation, or TRL's `prompt`, `chosen`, `rejected`."""

    conversation: RowFormat | None
    """The conversation that ends in the chosen answer; with `chosen`, the prompt alone (None: `chosen` holds it)."""
    chosen: str | None
    rejected: tuple[str, ...]
    """Columns of the rejected answer; a row fills one of them."""
    margin: str | None
    tools: str | None = None

    @property
    def chat(self) -> str | None:
        """The column of message lists that is no column for rewards."""
        return self.conversation.chat if self.conversation else None

    @property
    def columns(self) -> list[str]:
        """The columns this format reads."""
        names = [*(self.conversation.columns if self.conversation else ()), self.chosen, *self.rejected, self.margin, self.tools]
        return [name for name in names if name is not None]

    def read(self, row: Mapping[str, Any]) -> Preference:
        """The pair of a row.

        Raises:
            DataError: the row is malformed, or its answers are the same; the text does not name the row.
        """
        if self.chosen is not None:
            prompt = self.conversation.read(row) if self.conversation else []
            chosen, rejected = (_complete(prompt, row[name], name) for name in (self.chosen, *self.rejected))
        else:
            assert self.conversation is not None
            chosen = self.conversation.read(row)
            rejected = self._read_rejected(row, chosen)
        if self.tools:
            chosen, rejected = (with_tools(messages, row[self.tools]) for messages in (chosen, rejected))
        _check_pair(chosen, rejected)
        return Preference(chosen, rejected, _read_margin(row[self.margin]) if self.margin else 0.0)

    def _read_rejected(self, row: Mapping[str, Any], chosen: list[Message]) -> list[Message]:
        name = next((name for name in self.rejected if row[name] is not None), self.rejected[-1])
        if name == "rejected_messages":
            rejected = read_messages(row[name])
            has_system = rejected[0]["role"] == "system" or chosen[0]["role"] != "system"
            return check_conversation(rejected if has_system else [chosen[0], *rejected])
        return [*prompt_of(chosen), *_read_answer(row[name], name)]


@dataclass(frozen=True, slots=True)
class LabelledFormat:
    """Where labelled answers are read from; a pair gives two of them, if it is to be taken apart."""

    conversation: RowFormat | None
    pairs: PreferenceFormat | None = None

    @property
    def chat(self) -> str | None:
        """The column of message lists that is no column for rewards."""
        return (self.pairs or self.conversation).chat  # pyright: ignore[reportOptionalMemberAccess]

    @property
    def columns(self) -> list[str]:
        """The columns this format reads."""
        return self.pairs.columns if self.pairs else [*self.conversation.columns, "label"]  # pyright: ignore[reportOptionalMemberAccess]

    def read(self, row: Mapping[str, Any]) -> list[Labelled]:
        """The labelled answers of a row: one, or the two of a pair.

        Raises:
            DataError: the row is malformed; the text does not name the row.
        """
        if self.pairs:
            pair = self.pairs.read(row)
            return [Labelled(pair.chosen, True), Labelled(pair.rejected, False)]
        assert self.conversation is not None
        if not isinstance(row["label"], bool):
            raise DataError(f"column label is {row['label']!r}, expected true or false")
        messages = self.conversation.read(row)
        _check_ends_in_answer(messages, "its conversation")
        return [Labelled(messages, row["label"])]


@dataclass(frozen=True, slots=True)
class DetectLabelled:
    """Detects the format of labelled rows; of pairs too with `unpair_rows`."""

    unpair_rows: bool = field(default=False)

    def __call__(self, columns: Sequence[str]) -> LabelledFormat:
        """Raises `DataError`: there is no label."""
        if "label" in columns:
            return LabelledFormat(detect_format([name for name in columns if name != "label"]))
        if self.unpair_rows:
            return LabelledFormat(None, detect_preference_format(columns))
        raise DataError(
            f"no column label among its columns {', '.join(columns)}; "
            "rename one with `columns`, or set kto.unpair_rows to take pairs of answers apart"
        )


def detect_preference_format(columns: Sequence[str]) -> PreferenceFormat:
    """The format of rows with these columns.

    Raises:
        DataError: no column holds the rejected answer, or none the conversation.
    """
    margin, tools = (name if name in columns else None for name in ("margin", "tools"))
    columns = [name for name in columns if name != "tools"]
    if "chosen" in columns and "rejected" in columns:
        prompt = next((name for name in _PROMPT_COLUMNS if name in columns), None)
        system = next((name for name in _SYSTEM_COLUMNS if name in columns), None)
        conversation = RowFormat(query=prompt, system=system) if prompt else None
        return PreferenceFormat(conversation, "chosen", ("rejected",), margin, tools)
    rejected = tuple(name for name in _REJECTED_COLUMNS if name in columns)
    if not rejected:
        raise DataError(
            f"no rejected answer: its columns are {', '.join(columns)}, expected rejected_response or rejected_messages beside "
            "messages, or chosen and rejected; rename one with `columns`"
        )
    return PreferenceFormat(detect_format([name for name in columns if name not in rejected]), None, rejected, margin, tools)


def prompt_of(messages: Sequence[Message]) -> list[Message]:
    """The messages up to the last user turn."""
    return list(messages[: _last_user(messages) + 1])


def answer_of(messages: Sequence[Message]) -> list[Message]:
    """The messages after the last user turn."""
    return list(messages[_last_user(messages) + 1 :])


def _last_user(messages: Sequence[Message]) -> int:
    return max(number for number, message in enumerate(messages) if message["role"] == "user")


def _complete(prompt: list[Message], value: Any, name: str) -> list[Message]:
    """The prompt and the answer in column `name`, which may also hold the whole conversation."""
    answer = _read_answer(value, name)
    if answer[0]["role"] != "assistant":
        return check_conversation(answer)
    if not prompt:
        raise DataError(f"column {name} holds an answer alone, so the row needs a column prompt")
    return [*prompt, *answer]


def _read_answer(value: Any, name: str) -> list[Message]:
    if isinstance(value, list):
        return read_messages(value)
    return [{"role": "assistant", "content": read_text(value, f"column {name}")}]


def _read_margin(value: Any) -> float:
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"column margin is {value!r}, expected a number")
    return float(value)


def _check_pair(chosen: list[Message], rejected: list[Message]) -> None:
    _check_ends_in_answer(chosen, "the chosen conversation")
    _check_ends_in_answer(rejected, "the rejected conversation")
    if chosen == rejected:
        raise DataError("the chosen and the rejected answer are the same")
    first = next((pair for pair in zip(chosen, rejected, strict=False) if pair[0] != pair[1]), None)
    if first is not None and any(message["role"] in ("system", "user") for message in first):
        raise DataError("the chosen and the rejected conversation differ before their answers; both need the same prompt")


def _check_ends_in_answer(messages: list[Message], what: str) -> None:
    if messages[-1]["role"] != "assistant":
        raise DataError(f"{what} ends in a {messages[-1]['role']} turn, expected the answer (an assistant turn)")
