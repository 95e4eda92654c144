import json

import pytest

from rlflow.data.characters import build_character_tokenizer
from rlflow.errors import UserError
from rlflow.jobs.chat_session import ChatSession
from rlflow.spec.data import DataSpec
from rlflow.spec.rollout import GenerationSpec

SETTINGS = GenerationSpec(temperature=1, top_p=1, top_k=0, repetition_penalty=1, max_completion_tokens=20)


def session(room=200, system=None, prefix=""):
    tokenizer = build_character_tokenizer("abcdefghijklmnopqrstuvwxyz <>/ABCDEFGH")
    data = DataSpec(sources=({"type": "file", "path": "a.jsonl"},), system=system)  # pyright: ignore
    return ChatSession(tokenizer, SETTINGS, data, response_prefix=prefix, max_model_tokens=room)


def test_history_is_read_without_its_thinking_and_saved_with_it(tmp_path):
    chat = session()
    chat.answer("hello", "<think>secret</think>hi")
    text = chat.ask("again").text
    assert "hello" in text and "hi" in text and "secret" not in text
    assert chat.save(str(tmp_path / "talk.jsonl")) == 1
    [row] = [json.loads(line) for line in (tmp_path / "talk.jsonl").read_text().splitlines()]
    assert row == {
        "messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "<think>secret</think>hi"}]
    }


def test_another_system_prompt_begins_a_new_conversation_and_all_are_saved(tmp_path):
    chat = session(system="first")
    chat.answer("a", "b")
    chat.set_system("second")
    assert "first" not in chat.ask("c").text and "second" in chat.ask("c").text
    chat.answer("c", "d")
    chat.reset_system()
    assert "first" in chat.ask("e").text
    assert chat.save(str(tmp_path / "talk.jsonl")) == 2
    rows = [json.loads(line)["messages"] for line in (tmp_path / "talk.jsonl").read_text().splitlines()]
    assert [row[0] for row in rows] == [{"role": "system", "content": text} for text in ("first", "second")]
    chat.answer("e", "f")
    assert chat.save(str(tmp_path / "talk.jsonl")) == 3, "its own file may be written again"


def test_a_message_that_leaves_no_room_is_refused_and_forgotten():
    chat = session(room=60)
    with pytest.raises(UserError, match=r"the conversation has \d+ tokens with this message, the context 60: clear, or say less"):
        chat.ask("a" * 60)
    question = chat.ask("a")
    assert chat.messages == []
    assert chat.longest_answer(question) == min(20, 60 - len(question.prompt_ids))


def test_settings_change_or_say_why_not():
    chat = session()
    chat.change("temperature", "0.5")
    chat.change("max_tokens", "7")
    assert (chat.settings.temperature, chat.settings.max_completion_tokens) == (0.5, 7)
    with pytest.raises(UserError, match="top_p: Input should be less than or equal to 1"):
        chat.change("top_p", "2")
    assert chat.settings.top_p == 1


@pytest.mark.parametrize(
    ("name", "line"), [("talk.txt", "does not end in .jsonl"), ("there.jsonl", "exists"), ("no/a.jsonl", "No such")]
)
def test_saving_overwrites_nothing_of_others(tmp_path, name, line):
    (tmp_path / "there.jsonl").write_text("kept")
    chat = session()
    with pytest.raises(UserError, match="nothing to save"):
        chat.save(str(tmp_path / "new.jsonl"))
    chat.answer("a", "b")
    with pytest.raises(UserError, match=line):
        chat.save(str(tmp_path / name))
    assert (tmp_path / "there.jsonl").read_text() == "kept"
