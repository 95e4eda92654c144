"""What a chat reads from and writes to: a terminal, or a pipe that gets the answers and nothing else."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console

from rlflow.spec.rollout import GenerationSpec

_TAG = re.compile(r"(</?think>)")


class Screen(Protocol):
    """Where a chat takes place."""

    is_interactive: bool
    """Whether a person sits there, who may press Ctrl-C and go on."""

    def read(self, prompt: str) -> str:
        """The next line. Raises `EOFError` at the end of input, and `KeyboardInterrupt`."""
        ...

    def show(self, piece: str) -> None:
        """A piece of an answer."""
        ...

    def end(self) -> None:
        """The answer is complete."""
        ...

    def note(self, text: str) -> None:
        """Something that is no part of an answer."""
        ...


class Pipe:
    """Answers on stdout, everything else on stderr."""

    is_interactive = False

    def read(self, prompt: str) -> str:
        """A line of stdin."""
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")

    def show(self, piece: str) -> None:
        """As it is."""
        sys.stdout.write(piece)
        sys.stdout.flush()

    def end(self) -> None:
        """A line break."""
        self.show("\n")

    def note(self, text: str) -> None:
        """To stderr."""
        print(text, file=sys.stderr, flush=True)


class Terminal:
    """Rich output; thinking is dim."""

    is_interactive = True

    def __init__(self) -> None:
        import readline  # noqa: F401  (gives `input` editing and history)

        self._console = Console(highlight=False)
        self._is_thinking = False

    def read(self, prompt: str) -> str:
        """A line, edited and with history."""
        return input(f"\001\033[1;36m\002{prompt}\001\033[0m\002")

    def show(self, piece: str) -> None:
        """Dim between `<think>` and `</think>`."""
        for part in _TAG.split(piece):
            self._is_thinking = self._is_thinking or part == "<think>"
            style = "dim" if self._is_thinking else None
            self._console.print(part, end="", style=style, markup=False, soft_wrap=True)
            self._is_thinking = self._is_thinking and part != "</think>"

    def end(self) -> None:
        """A line break; thinking that was not closed ends with its answer."""
        self._is_thinking = False
        self._console.print()

    def note(self, text: str) -> None:
        """Dim."""
        self._console.print(text, style="yellow", markup=False, soft_wrap=True)


def open_screen() -> Screen:
    """A terminal if both ends are one."""
    return Terminal() if sys.stdin.isatty() and sys.stdout.isatty() else Pipe()


def describe_settings(settings: GenerationSpec) -> str:
    """One line."""
    names = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "repetition_penalty": "repetition_penalty"}
    names |= {"max_completion_tokens": "max_tokens"}
    return "  ".join(f"{shown} {getattr(settings, name):g}" for name, shown in names.items())


@contextmanager
def stdout_is_stderr() -> Iterator[None]:
    """What libraries, and the C++ below them, print to stdout inside goes to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
