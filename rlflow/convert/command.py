"""A piece of shell text to the one ms-swift command in it."""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rlflow.errors import UserError

COMMANDS = {
    "swift": ("sft", "rlhf", "infer", "export"),
    "megatron": ("sft",),
}
"""What can be converted."""

_TOKEN = re.compile(
    r"""(?P<space> (?: [ \t\r] | \\\r?\n )+ )
      | (?P<comment> \#[^\n]* )
      | (?P<redirect> \d*[<>]+&?[ \t]*[^\s|&;]* )
      | (?P<end> [\n;|&()]+ )
      | (?P<word> (?: \\. | '[^']*' | "(?:\\.|[^"\\])*" | [^\s'"\\|&;<>()] )+ )""",
    re.VERBOSE | re.DOTALL,
)
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_REFERENCE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


@dataclass(frozen=True, slots=True)
class Command:
    """A command: variables before it (or exported above), and its words."""

    variables: Mapping[str, str]
    words: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    """Other commands and redirections of the text."""

    @property
    def name(self) -> str:
        """`swift sft` and the like."""
        return " ".join(self.words[:2])

    @property
    def arguments(self) -> tuple[str, ...]:
        """What follows the name."""
        return self.words[2:]


def read_command(text: str) -> Command:
    """The one ms-swift command of a shell text: comments, quotes, continued lines and `VAR=value` are understood.

    Raises:
        UserError: there is none or more than one, or a quote is not closed.
    """
    exported: dict[str, str] = {}
    found: list[Command] = []
    left_out: list[str] = []
    for words in _simple_commands(text, left_out):
        variables, rest = _assignments(words, exported)
        if rest[:1] == ["nohup"]:
            rest = rest[1:]
        if not rest or rest[0] == "export":
            exported |= _assignments(rest[1:], exported)[0] if rest else variables
        elif rest[0] in COMMANDS:
            found.append(Command(exported | variables, tuple(rest)))
        else:
            left_out.append(shlex.join(rest))
    if len(found) != 1:
        names = ", ".join(command.name for command in found) or "none"
        raise UserError(f"convert: one swift or megatron command is wanted, found: {names}")
    [command] = found
    if command.words[1:2] == () or command.words[1] not in COMMANDS[command.words[0]]:
        known = ", ".join(f"{program} {verb}" for program, verbs in COMMANDS.items() for verb in verbs)
        raise UserError(f"convert: {command.name}: cannot be converted; known are {known}")
    return Command(command.variables, command.words, tuple(left_out))


def _simple_commands(text: str, left_out: list[str]) -> Iterator[list[str]]:
    """The words of each command, without quotes; redirections go to `left_out`."""
    words: list[str] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            line = text[:position].count("\n") + 1
            raise UserError(
                f"convert: line {line}: the quote that begins there is not closed: {text[position : position + 40]!r}"
            )
        position = match.end()
        if match.lastgroup == "word":
            words += shlex.split(match[0].replace("\\\n", ""))
        elif match.lastgroup == "redirect":
            left_out.append(match[0])
        elif match.lastgroup == "end":
            yield words
            words = []
    yield words


def _assignments(words: list[str], known: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Leading `VAR=value` words, and the rest with variables in them put in where they are known."""
    variables: dict[str, str] = {}
    for index, word in enumerate(words):
        match = _ASSIGNMENT.fullmatch(word)
        if match is None:
            return variables, [_expand(word, known) for word in words[index:]]
        variables[match[1]] = _expand(match[2], {**known, **variables})
    return variables, []


def _expand(word: str, variables: Mapping[str, str]) -> str:
    return _REFERENCE.sub(lambda match: variables.get(match[1] or match[2], match[0]), word)
