"""The messages of a conversation: read from what data sets hold, checked, in one form."""

import json
from collections.abc import Mapping
from typing import Any

from rlflow.data.tools import read_tool_calls
from rlflow.errors import DataError

Message = dict[str, Any]
"""`role` (system, user, assistant or tool) and `content` (text); optionally `loss` (bool), `loss_scale`
(float) and what a chat template reads, such as `tool_calls`. The first message may carry the conversation's `tools`.
A plain text is a single message of the role `text`."""

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "observation": "tool",
}
_CALL_ROLES = ("tool_call", "function_call")


def read_messages(value: Any) -> list[Message]:
    """Read a list of messages in any of the usual spellings, or its JSON text (as csv files hold it).

    Spellings: `role`/`content`, `from`/`value`, the roles human, gpt, bot and observation,
    `{human, assistant}` pairs, and calls of tools as messages of their own (tool_call, function_call).

    Raises:
        DataError: it is no list of messages; the text does not name the row.
    """
    items = _parse_json(value) if isinstance(value, str) else value
    if not isinstance(items, list) or not items:
        raise DataError(f"no messages: expected a list of messages, found {_describe(value)}")
    messages: list[Message] = []
    for number, item in enumerate(items, start=1):
        if not isinstance(item, Mapping):
            raise DataError(f"message {number} is {_describe(item)}, expected an object with role and content")
        read = _read_item(item, number)
        if _is_call(item) and messages and messages[-1]["role"] == "assistant":
            messages[-1] = _join_calls(messages[-1], read[0])
        else:
            messages += read
    return messages


def check_conversation(messages: list[Message]) -> list[Message]:
    """The same messages, if there is a user turn among them and a system turn, if any, comes first."""
    roles = [message["role"] for message in messages]
    if "user" not in roles:
        raise DataError("no user turn among its messages")
    if "system" in roles[1:]:
        raise DataError(f"message {roles.index('system', 1) + 1} is a system turn; only the first message may be one")
    return messages


def read_text(value: Any, where: str) -> str:
    """Text content: a string, a number, or a list of `{type: text}` blocks; `where` names it in errors."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, list):
        value = "".join(_read_block(block, where) for block in value)
    if not isinstance(value, str):
        raise DataError(f"{where} is {'missing' if value is None else _describe(value)}, expected text")
    if not value.strip():
        raise DataError(f"{where} is empty")
    return value


def _read_item(item: Mapping[str, Any], number: int) -> list[Message]:
    if "human" in item and "role" not in item and "from" not in item:
        pair = [("user", item["human"]), ("assistant", item.get("assistant"))]
        return [
            {"role": role, "content": read_text(text, f"{role} text of message {number}")}
            for role, text in pair
            if text is not None
        ]
    return [_read_message({key: value for key, value in item.items() if value is not None}, number)]


def _is_call(item: Mapping[str, Any]) -> bool:
    return item.get("role", item.get("from")) in _CALL_ROLES


def _join_calls(message: Message, call: Message) -> Message:
    """An assistant message followed by a call is one turn."""
    return message | {"tool_calls": [*message.get("tool_calls", ()), *call["tool_calls"]]}


def _read_message(item: dict[str, Any], number: int) -> Message:
    rest = {key: value for key, value in item.items() if key not in ("role", "from", "content", "value")}
    name = item.get("role", item.get("from"))
    if _is_call(item):
        calls = read_tool_calls(item.get("content", item.get("value")), f"content of message {number} ({name})")
        return {**rest, "role": "assistant", "content": "", "tool_calls": calls}
    role = _ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise DataError(f"message {number} has role {name!r}, expected system, user, assistant or tool")
    _check_loss(rest, number)
    if rest.get("tool_calls"):
        rest["tool_calls"] = read_tool_calls(rest["tool_calls"], f"tool_calls of message {number}")
    content = item.get("content", item.get("value"))
    if role == "assistant" and rest.get("tool_calls") and not content:
        return {"role": role, "content": "", **rest}
    return {"role": role, "content": read_text(content, f"content of message {number} ({role})"), **rest}


def _check_loss(rest: dict[str, Any], number: int) -> None:
    loss, scale = rest.get("loss"), rest.get("loss_scale")
    if loss is not None and not isinstance(loss, bool):
        raise DataError(f"loss of message {number} is {_describe(loss)}, expected true or false")
    if scale is not None and (isinstance(scale, bool) or not isinstance(scale, int | float) or scale < 0):
        raise DataError(f"loss_scale of message {number} is {scale!r}, expected a number of at least 0")


def _read_block(block: Any, where: str) -> str:
    if isinstance(block, Mapping) and block.get("type") == "text" and isinstance(block.get("text"), str):
        return block["text"]
    raise DataError(f"{where} holds a block that is not text: {_describe(block)}")


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise DataError(f"no messages: expected a list of messages, found {_describe(text)}") from None


def _describe(value: Any) -> str:
    if value is None:
        return "nothing"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
