import pytest

from rlflow.data.formats import TextFormat, detect_format, detect_training_format
from rlflow.errors import DataError

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "yo"}
SYSTEM = {"role": "system", "content": "be kind"}


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"messages": [USER, ASSISTANT], "solution": "4"}, [USER, ASSISTANT]),
        ({"messages": '[{"role": "user", "content": "hi"}]'}, [USER]),
        ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]},
         [USER, ASSISTANT]),
        ({"conversation": [{"human": "hi", "assistant": "yo"}]}, [USER, ASSISTANT]),
        ({"messages": [USER], "system": "be kind"}, [SYSTEM, USER]),
        ({"messages": [SYSTEM, USER], "system": "other"}, [SYSTEM, USER]),
        ({"instruction": "hi", "input": "", "output": "yo"}, [USER, ASSISTANT]),
        ({"instruction": "add", "input": "1 2", "output": "3"}, [
            {"role": "user", "content": "add\n1 2"}, {"role": "assistant", "content": "3"}]),
        ({"query": "hi", "response": "yo", "answer": "other"}, [USER, ASSISTANT]),
        ({"question": "hi", "answer": 4}, [USER, {"role": "assistant", "content": "4"}]),
        ({"problem": "hi", "answer": "4", "solution": "2+2=4"}, [USER]),
        ({"prompt": "hi", "system_prompt": "be kind"}, [SYSTEM, USER]),
        ({"prompt": "hi", "system_prompt": None}, [USER]),
        ({"prompt": [SYSTEM, USER], "completion": [ASSISTANT]}, [SYSTEM, USER, ASSISTANT]),
        ({"query": "more", "response": "ok", "history": '[["hi", "yo"]]'}, [
            USER, ASSISTANT, {"role": "user", "content": "more"}, {"role": "assistant", "content": "ok"}]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}, [USER]),
        ({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}]},
            {"role": "tool", "content": "2", "tool_call_id": "1", "name": None}], "tools": '[{"name": "add"}]'},
         [USER | {"tools": [{"name": "add"}]}, {"role": "assistant", "content": "", "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]},
            {"role": "tool", "content": "2", "tool_call_id": "1"}]),
        ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"},
            {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
            {"from": "function_call", "value": '{"name": "nop"}'}, {"from": "observation", "value": "2"}], "tools": None},
         [USER, ASSISTANT | {"tool_calls": [
            {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}},
            {"type": "function", "function": {"name": "nop", "arguments": {}}}]}, {"role": "tool", "content": "2"}]),
        ({"query": "hi", "tools": [{"name": "add", "parameters": {"a": {"type": "int"}, "b": None}}]},
         [USER | {"tools": [{"name": "add", "parameters": {"a": {"type": "int"}}}]}]),
        ({"messages": [USER, ASSISTANT | {"loss": False, "loss_scale": None}]},
         [USER, ASSISTANT | {"loss": False}]),
    ],
)  # fmt: skip
def test_a_row_becomes_messages(row, messages):
    assert detect_format(list(row)).read(row) == messages


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": None}, "no messages: expected a list of messages, found nothing"),
        ({"messages": []}, "no messages"),
        ({"messages": "not json"}, "no messages"),
        ({"messages": ["hi"]}, "message 1 is str 'hi'"),
        ({"messages": [{"role": "wizard", "content": "hi"}]}, "message 1 has role 'wizard'"),
        ({"messages": [{"content": "hi"}]}, "message 1 has role None"),
        (
            {"messages": [USER, {"role": "assistant", "content": " "}]},
            r"content of message 2 \(assistant\) is empty",
        ),
        ({"messages": [{"role": "user", "content": {"a": 1}}]}, "is dict"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]}, "not text"),
        ({"messages": [ASSISTANT]}, "no user turn"),
        ({"messages": [USER, SYSTEM]}, "message 2 is a system turn"),
        ({"messages": [USER, ASSISTANT | {"loss": "no"}]}, "loss of message 2"),
        ({"messages": [USER, ASSISTANT | {"loss_scale": -1}]}, "loss_scale of message 2"),
        ({"messages": [USER], "tools": "no json"}, "column tools is not valid JSON"),
        ({"messages": [USER], "tools": [1]}, "column tools is not a list of tool descriptions"),
        ({"messages": [USER, ASSISTANT | {"tool_calls": [{"arguments": {}}]}]}, "tool_calls of message 2 holds a call without"),
        ({"messages": [USER, {"role": "tool_call", "content": '{"name": "f", "arguments": "3"}'}]}, "arguments of f in content"),
        ({"question": "", "answer": "4"}, "column question is empty"),
        ({"question": "hi", "answers": {"text": ["a"]}}, "column answers .*rename it"),
        ({"query": "hi", "response": "yo", "history": [["a"]]}, "pairs"),
    ],
)
def test_a_malformed_row_is_explained(row, message):
    with pytest.raises(DataError, match=message):
        detect_format(list(row)).read(row)


def test_columns_that_hold_no_conversation_are_listed():
    with pytest.raises(DataError, match="its columns are a, b, expected one of messages"):
        detect_format(["a", "b"])


def test_two_possible_prompts_are_refused():
    with pytest.raises(DataError, match="prompt, question could each be the prompt"):
        detect_format(["question", "prompt"])


def test_a_text_column_alone_is_plain_text_for_training():
    assert detect_training_format(["text", "source"]).read({"text": "Once."}) == [{"role": "text", "content": "Once."}]
    assert not isinstance(detect_training_format(["question", "text"]), TextFormat)  # there it is the response
    with pytest.raises(DataError, match="column text is empty"):
        TextFormat().read({"text": " "})
    with pytest.raises(DataError, match="no messages"):  # nothing to sample from
        detect_format(["text"])
