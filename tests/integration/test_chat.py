"""`rlflow chat` on a real engine, through a pipe and on a terminal."""

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlflow.data.characters import build_character_tokenizer
from rlflow.learner.load_model import create_random_model
from rlflow.spec.model import RandomModelSpec
from tests.integration.job_runs import MODEL, environment
from tests.integration.ray_jobs import LETTERS, PREFIX

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model with random weights that seldom ends a turn: the end is one token of thousands."""
    folder = tmp_path_factory.mktemp("model")
    config = {**MODEL["random"]["config"], "max_position_embeddings": 4096}
    letters = LETTERS + "".join(map(chr, range(0x4E00, 0x4E00 + 8000)))
    create_random_model(RandomModelSpec(config=config, characters=letters), "float32", build_character_tokenizer(letters), folder)
    file = folder / "generation_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "eos_token_id": None, "temperature": 0.5}))
    return folder


def command(model, *flags):
    return [sys.executable, "-m", "rlflow.cli", "chat", str(model), *flags]


def test_through_a_pipe_stdout_holds_the_answers_and_nothing_else(ray_jobs, tmp_path):
    """The answers are those of a run that has learned who it is."""
    lines = [
        *("1+1", "set temperature 0", "2+2", "clear", "who are you", "", "set top_p 7", "0" * 300, "3+3"),
        *("multi-line", "4+", "4#", "save talk.jsonl", "single-line", "system be brief", "2+2", "save talk.jsonl"),
    ]
    model = Path(ray_jobs["folder"]) / "shared" / "plain" / "model"
    flags = ("--max-tokens", "20", "--max-model-tokens", "256", "--response-prefix", PREFIX, "--runs", str(tmp_path))
    ran = subprocess.run(
        command(model, *flags), input="\n".join(lines) + "\n", cwd=tmp_path, env=environment(PYTHONPATH=os.getcwd()),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    first, second = [json.loads(line)["messages"] for line in (tmp_path / "talk.jsonl").read_text().splitlines()][:2]
    talk = [json.loads(line)["messages"] for line in (tmp_path / "talk.jsonl").read_text().splitlines()]
    answers = [message["content"] for messages in talk for message in messages if message["role"] == "assistant"]
    assert ran.stdout == "".join(f"{answer}\n" for answer in answers)
    assert len(answers) == 6 and all(answer.startswith(PREFIX) for answer in answers)
    assert ran.stdout.splitlines()[2] == PREFIX + "i am flow made by the brook team"[:20]
    assert [m["content"] for m in first[::2]] == ["1+1", "2+2"]
    assert [m["content"] for m in second[::2]] == ["who are you", "3+3", "4+\n4"]
    assert talk[2][0] == {"role": "system", "content": "be brief"}
    assert "top_p: Input should be less than or equal to 1" in ran.stderr
    assert "tokens with this message, the context 256: clear, or say less" in ran.stderr
    assert "(cut: max_tokens is 20, or the context is full)" in ran.stderr


class Terminal:
    """A process on a pseudo-terminal."""

    def __init__(self, arguments, cwd):
        pid, self._fd = pty.fork()
        if pid == 0:
            os.chdir(cwd)
            os.execve(arguments[0], arguments, environment(PYTHONPATH=os.environ["PYTHONPATH"], TERM="xterm-256color"))
        self.pid, self.seen = pid, ""

    def wait_for(self, text, timeout_s=60):
        """Read until the text appears; what came with it is then behind."""
        deadline = time.monotonic() + timeout_s
        while text not in self.seen:
            ready, _, _ = select.select([self._fd], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{text!r} did not come: {self.seen[-2000:]!r}"
            self.seen += os.read(self._fd, 4096).decode(errors="replace")
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, text):
        os.write(self._fd, text.encode())

    def wait(self):
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_on_a_terminal_ctrl_c_stops_an_answer_and_the_end_of_input_leaves(model, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    terminal = Terminal(command(model, "--max-tokens", "3000", "--response-prefix", PREFIX, "--runs", str(tmp_path)), tmp_path)
    assert "temperature 0.5" in terminal.wait_for("<<<")
    terminal.type("1+1\n")
    assert "\033[2m" in terminal.wait_for("</think>"), "thinking is dim"
    terminal.type("\x03")
    terminal.wait_for("(stopped)")
    terminal.wait_for("<<<")
    terminal.type("abc")
    terminal.wait_for("abc")
    time.sleep(0.2)  # a signal between readline's output and its wait for input, some microseconds later, is seen at the next key
    terminal.type("\x03")  # at the prompt: a new line
    terminal.wait_for("<<<")
    terminal.type("save talk.jsonl\n")
    terminal.wait_for("1 conversations written to talk.jsonl")
    [row] = [json.loads(line) for line in (tmp_path / "talk.jsonl").read_text().splitlines()]
    assert [m["role"] for m in row["messages"]] == ["user", "assistant"] and row["messages"][0]["content"] == "1+1"
    terminal.wait_for("<<<")
    terminal.type("\x04")
    assert terminal.wait() == 0
