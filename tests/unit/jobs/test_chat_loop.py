"""The loop of a chat through a pipe, with a scripted engine."""

import asyncio
import io
import os
import signal
import sys

import pytest

from rlflow.data.characters import build_character_tokenizer
from rlflow.jobs.chat import Chat
from rlflow.jobs.chat_screen import Pipe
from rlflow.jobs.chat_session import ChatSession
from rlflow.spec.data import DataSpec
from rlflow.spec.rollout import GenerationSpec

TOKENIZER = build_character_tokenizer("abcdefghijklmnopqrstuvwxyz \n")
SETTINGS = GenerationSpec(temperature=1, top_p=1, top_k=0, repetition_penalty=1, max_completion_tokens=20)


class Engine:
    """Answers a token at a time with `yes`; where it is told to, Ctrl-C is pressed after the first and nothing follows."""

    def __init__(self, interrupted=()):
        self.prompts, self._interrupted = [], interrupted

    async def stream(self, request):
        self.prompts.append(TOKENIZER.decode(request.prompt_ids))
        first, *rest = TOKENIZER("yes").input_ids
        yield [first], None
        if len(self.prompts) - 1 in self._interrupted:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(60)
        yield rest, "stop"


@pytest.fixture
def talk(monkeypatch, capsys):
    """A whole chat: what its input is -> its session, the prompts that the engine got, stdout and stderr."""

    def talk(text, engine=None, system=None):
        engine = engine or Engine()
        data = DataSpec(sources=({"type": "file", "path": "a.jsonl"},), system=system)  # pyright: ignore
        session = ChatSession(TOKENIZER, SETTINGS, data, response_prefix="", max_model_tokens=400)
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        with asyncio.Runner() as runner:
            Chat(session, Pipe(), engine, TOKENIZER, runner).run()  # pyright: ignore
        return session, engine.prompts, *capsys.readouterr()

    return talk


def said(session):
    return [message["content"] for message in session.messages]


def test_ctrl_c_stops_an_answer_and_the_chat_goes_on(talk):
    session, prompts, out, err = talk("a\nb\nexit\nc\n", Engine(interrupted=[0]))
    assert said(session) == ["a", "y", "b", "yes"] and len(prompts) == 2
    assert out == "y\nyes\n" and err == "(stopped)\n"


@pytest.mark.parametrize("end", ["#\n", "# \nmulti-line\n", "\n", ""])
def test_a_message_of_several_lines_ends_at_its_mark_or_with_the_input(talk, end):
    session, _, out, _ = talk(f"multi-line\nfirst\nclear\nthird{end}")
    assert said(session) == ["first\nclear\nthird", "yes"] and out == "yes\n"


def test_the_system_prompt_is_changed_taken_away_and_brought_back(talk):
    session, prompts, _, err = talk("a\nsystem brief\nb\nsystem\nc\nreset-system\nd\n", system="first")
    found = ["first" in prompt or ("brief" in prompt and "brief") for prompt in prompts]
    assert found == [True, "brief", False, True] and "system" not in prompts[2]
    assert err.splitlines() == ["system prompt: brief", "system prompt: none", "system prompt: first"]
    assert said(session) == ["d", "yes"]
