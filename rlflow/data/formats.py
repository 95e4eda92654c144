"""Which columns of a data set hold the conversation, and how a row becomes messages."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlflow.data.messages import Message, check_conversation, read_messages, read_text
from rlflow.data.tools import read_tools
from rlflow.errors import DataError

CHAT_COLUMNS = ("messages", "conversation", "conversations")
_QUERY_COLUMNS = ("query", "prompt", "input", "instruction", "question", "problem")
_RESPONSE_COLUMNS = (
    *("response", "answer", "output", "targets", "target", "answer_key", "answers"),
    *("solution", "text", "completion", "content"),
)
_SYSTEM_COLUMNS = ("system", "system_prompt")


@dataclass(frozen=True, slots=True)
class RowFormat:
    """Where a conversation is read from: `chat` holds message lists, else `query` holds the user turn."""

    chat: str | None = None
    query: str | None = None
    query_input: str | None = None
    response: str | None = None
    history: str | None = None
    system: str | None = None
    tools: str | None = None

    @property
    def columns(self) -> list[str]:
        """The columns this format reads."""
        names = (self.chat, self.query, self.query_input, self.response, self.history, self.system, self.tools)
        return [name for name in names if name is not None]

    def read(self, row: Mapping[str, Any]) -> list[Message]:
        """The conversation of a row.

        Raises:
            DataError: the row is malformed; the text does not name the row.
        """
        messages = read_messages(row[self.chat]) if self.chat else self._read_pair(row)
        system = row[self.system] if self.system else None
        if system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": read_text(system, f"column {self.system}")})
        return check_conversation(with_tools(messages, row[self.tools]) if self.tools else messages)

    def _read_pair(self, row: Mapping[str, Any]) -> list[Message]:
        history = _read_history(row[self.history]) if self.history else []
        return history + self._read_query(row) + self._read_response(row)

    def _read_query(self, row: Mapping[str, Any]) -> list[Message]:
        assert self.query is not None
        value = row[self.query]
        if isinstance(value, list):
            return read_messages(value)
        text = read_text(value, f"column {self.query}")
        if self.query_input and row[self.query_input]:
            text += "\n" + read_text(row[self.query_input], f"column {self.query_input}")
        return [{"role": "user", "content": text}]

    def _read_response(self, row: Mapping[str, Any]) -> list[Message]:
        value = row[self.response] if self.response else None
        if value is None:
            return []
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            return read_messages(value)
        where = f"column {self.response} (taken as the response; rename it with `columns` if it is none)"
        return [{"role": "assistant", "content": read_text(value, where)}]


@dataclass(frozen=True, slots=True)
class TextFormat:
    """Plain text in a column: no conversation, trained whole."""

    text: str = "text"
    chat: None = None

    @property
    def columns(self) -> list[str]:
        """The column of texts."""
        return [self.text]

    def read(self, row: Mapping[str, Any]) -> list[Message]:
        """The text as a single message. Raises `DataError`: it is empty, or no text."""
        return [{"role": "text", "content": read_text(row[self.text], f"column {self.text}")}]


def with_tools(messages: list[Message], value: Any) -> list[Message]:
    """The messages, the first of them with the tools of a row's column. Raises `DataError`: they are malformed."""
    tools = read_tools(value, "column tools")
    return [messages[0] | {"tools": tools}, *messages[1:]] if tools else messages


def detect_format(columns: Sequence[str]) -> RowFormat:
    """The format of rows with these columns.

    In order: message lists, `instruction` with `input` (Alpaca), then one prompt column with or without a
    response. Where two columns could be the response neither is, and rows are prompts only.

    Raises:
        DataError: no column, or more than one, could be the prompt.
    """
    system, tools = _first(_SYSTEM_COLUMNS, columns), _first(("tools",), columns)
    if chat := _first(CHAT_COLUMNS, columns):
        return RowFormat(chat=chat, system=system, tools=tools)
    history = _first(("history",), columns)
    response = _only(_RESPONSE_COLUMNS, columns)
    if "instruction" in columns and "input" in columns and "query" not in columns:
        query, query_input = "instruction", "input"
    else:
        query, query_input = _find_query(columns), None
    return RowFormat(query=query, query_input=query_input, response=response, history=history, system=system, tools=tools)


def detect_training_format(columns: Sequence[str]) -> RowFormat | TextFormat:
    """The same for rows that are only trained on: a column `text` without a prompt is plain text.

    Raises:
        DataError: as `detect_format`.
    """
    is_plain = "text" in columns and not any(name in columns for name in (*CHAT_COLUMNS, *_QUERY_COLUMNS))
    return TextFormat() if is_plain else detect_format(columns)


def _find_query(columns: Sequence[str]) -> str:
    query = _only(_QUERY_COLUMNS, columns)
    if query is not None:
        return query
    found = [name for name in _QUERY_COLUMNS if name in columns]
    if found:
        raise DataError(f"the columns {', '.join(found)} could each be the prompt; rename the right one to query")
    names = ", ".join(columns) or "none"
    expected = ", ".join((*CHAT_COLUMNS, *_QUERY_COLUMNS))
    raise DataError(f"no messages: its columns are {names}, expected one of {expected}; rename one with `columns`")


def _first(names: Sequence[str], columns: Sequence[str]) -> str | None:
    return next((name for name in names if name in columns), None)


def _only(names: Sequence[str], columns: Sequence[str]) -> str | None:
    """The first name if it is a column, else the single other one that is."""
    found = [name for name in names if name in columns]
    return found[0] if found and (found[0] == names[0] or len(found) == 1) else None


def _read_history(value: Any) -> list[Message]:
    """Earlier rounds, given as `[[user text, assistant text], …]` or as its JSON text."""
    try:
        pairs = json.loads(value) if isinstance(value, str) and value else value or []
    except ValueError:
        pairs = None
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise DataError("column history is not a list of [user, assistant] pairs")
    return [
        {"role": role, "content": read_text(text, "column history")}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
