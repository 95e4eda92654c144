"""Tools of a conversation, and calls of them, in the form that chat templates take (OpenAI's)."""

import json
from collections.abc import Mapping
from typing import Any

from rlflow.errors import DataError


def read_tools(value: Any, where: str) -> list[dict[str, Any]]:
    """Tool descriptions: a list of objects or its JSON text; `where` names it in errors. Empty if there are none.

    Raises:
        DataError: it is no list of objects.
    """
    tools = _parse(value, where) if isinstance(value, str) and value.strip() else value or []
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise DataError(f"{where} is not a list of tool descriptions, nor its JSON text")
    return [without_nulls(tool) for tool in tools]


def read_tool_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Calls as `{type: function, function: {name, arguments}}`, arguments as an object.

    They are given so, or as `{name, arguments}`, alone or in a list, or as JSON text; arguments may be JSON text too.

    Raises:
        DataError: a call has no name, or its arguments are no object.
    """
    calls = _parse(value, where) if isinstance(value, str) else value
    return [_read_call(call, where) for call in (calls if isinstance(calls, list) else [calls])]


def without_nulls(value: Any) -> Any:
    """The value without the null fields of its objects: a table column adds to every object the fields of all others."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _read_call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") or call if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise DataError(f"{where} holds a call without a name; expected {{name, arguments}}")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        arguments = _parse(arguments, f"arguments of {name} in {where}")
    if not isinstance(arguments, Mapping):
        raise DataError(f"arguments of {name} in {where} are no object, nor the JSON text of one")
    named = {"id": call["id"]} if call.get("id") is not None else {}
    return {**named, "type": "function", "function": {"name": name, "arguments": without_nulls(arguments)}}


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{where} is not valid JSON: {error}") from None
