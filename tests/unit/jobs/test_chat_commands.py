import pytest

from rlflow.jobs.chat_commands import Command, read_command


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("exit", Command("exit")),
        ("QUIT", Command("exit")),
        (" clear ", Command("clear")),
        ("system Be  brief. ", Command("system", "Be  brief.")),
        ("system", Command("system")),
        ("set", Command("set")),
        ("set temperature 0.7", Command("set", "temperature 0.7")),
        ("set max_tokens 20", Command("set", "max_tokens 20")),
        ("save talk.jsonl", Command("save", "talk.jsonl")),
        ("multi-line", Command("multi-line")),
    ],
)
def test_commands(line, command):
    assert read_command(line) == command


@pytest.mark.parametrize(
    "line",
    [
        "",
        "hello",
        "exit the room",
        "set up a plan",
        "set fire to it",
        "save the world please",
        "clear your mind",
        "who are you? /no_think",
    ],
)
def test_everything_else_is_a_message(line):
    assert read_command(line) is None
