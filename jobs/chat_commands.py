"""What a line typed in a chat means: a command or a message."""

from dataclasses import dataclass

SETTINGS = ("temperature", "top_p", "top_k", "repetition_penalty", "max_completion_tokens")
_SHORT = {"max_tokens": "max_completion_tokens"}
HELP = """\
clear                 forget the conversation; the system prompt stays
system TEXT           another system prompt (without TEXT: none), and a new conversation
reset-system          the system prompt that the chat began with, and a new conversation
multi-line            a message ends at a line that ends in # (or with the input); single-line goes back
set                   show the settings
set NAME VALUE        change one: temperature, top_p, top_k, repetition_penalty or max_tokens
save FILE             write the conversations of this chat as JSON lines to train on (with their thinking)
help                  this list
exit, quit            leave; so does the end of input
Ctrl-C                stop an answer; what there is of it stays

Everything else is a message. A model that thinks by turns (Qwen3) obeys /think and /no_think in it."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command with what follows its name."""

    name: str
    argument: str = ""


def read_command(line: str) -> Command | None:
    """The command of a line; None for a message.

    `save` takes one word, and `set` none or the name of a setting and one word: sentences that begin so are messages.
    """
    words = line.split()
    if not words:
        return None
    name, rest = words[0].lower(), line.strip()[len(words[0]) :].strip()
    if not rest and name in ("exit", "quit", "clear", "help", "multi-line", "single-line", "reset-system", "set", "system"):
        return Command("exit" if name == "quit" else name)
    if name == "system":
        return Command(name, rest)
    if name == "save" and len(words) == 2:
        return Command(name, rest)
    if name == "set" and len(words) == 3 and setting(words[1]) in SETTINGS:
        return Command(name, rest)
    return None


def setting(name: str) -> str:
    """The full name of a setting."""
    return _SHORT.get(name.lower(), name.lower())
