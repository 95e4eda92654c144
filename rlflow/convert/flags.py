"""What is known of the flags of a command, and the values that a command gives them."""

import difflib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlflow.errors import UserError

Version = Literal["3.6", "4"]
"""Of ms-swift, as far as defaults and names moved."""


@dataclass(frozen=True, slots=True)
class Moved:
    """A default that moved."""

    before: Any
    now: Any


@dataclass(frozen=True, slots=True)
class Flag:
    """What becomes of a flag: it has a `field`, or a rule takes it, or it is only noted (`same`, `missing`)."""

    read: Callable[[list[str]], Any]
    """Its words to its value. Raises `ValueError`."""
    default: Any = None
    """ms-swift's, or `Moved`; None: none, or one that changes nothing that is computed."""
    field: str = ""
    """The field of the spec that has this value."""
    changed: str = ""
    """What is different there, for a note when it is given."""
    same: str = ""
    """Why there is nothing to set."""
    when: tuple[Any, ...] = ()
    """Values that `same` holds for; all if empty."""
    missing: str = ""
    """Why there is no equivalent."""


Table = Mapping[str, Flag]
SECRETS = ("hub_token",)
"""Flags whose values are never shown."""


def to(field: str, read: Callable[[list[str]], Any], default: Any = None, changed: str = "") -> Flag:
    """A flag whose value is that of a field."""
    return Flag(read, default, field=field, changed=changed)


def part(read: Callable[[list[str]], Any], default: Any = None, changed: str = "") -> Flag:
    """A flag that a rule takes, together with others."""
    return Flag(read, default, changed=changed)


def same(why: str, read: Callable[[list[str]], Any] | None = None, when: tuple[Any, ...] = (), otherwise: str = "") -> Flag:
    """A flag that asks for what happens anyway, if its value is one of `when`; otherwise it has no equivalent."""
    return Flag(read or words, same=why, when=when, missing=otherwise)


def missing(why: str, read: Callable[[list[str]], Any] | None = None, when: tuple[Any, ...] = ()) -> Flag:
    """A flag without equivalent; values of `when` ask for what happens anyway."""
    return Flag(read or words, missing=why, same="off, as here" if when else "", when=when)


# ---- values


def text(words: list[str]) -> str:
    """One word."""
    if len(words) != 1:
        raise ValueError(f"takes one value, got {len(words)}")
    return words[0]


def integer(words: list[str]) -> int:
    """A whole number."""
    return int(text(words))


def number(words: list[str]) -> float:
    """A number; a whole one stays whole."""
    value = float(text(words))
    return int(value) if value.is_integer() and "e" not in words[0].lower() and "." not in words[0] else value


def boolean(words: list[str]) -> bool:
    """true or false; a flag without value is true."""
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    value = known.get(text(words).lower()) if words else True
    if value is None:
        raise ValueError(f"is true or false, not {words[0]}")
    return value


def words(words: list[str]) -> list[str]:
    """Any number of words."""
    return list(words)


def numbers(words: list[str]) -> list[float]:
    """Any number of numbers."""
    return [number([word]) for word in words]


def mapping(words: list[str]) -> dict[str, Any]:
    """JSON."""
    value = json.loads(text(words))
    if not isinstance(value, dict):
        raise ValueError("is a JSON object")
    return value


# ---- a command's settings


class Settings:
    """The values of a command's flags: as given, or as ms-swift has them by default."""

    def __init__(
        self, command: str, arguments: Sequence[str], table: Table, old_names: Mapping[str, str], version: Version
    ) -> None:
        """`old_names`: other name -> name in the table. Raises `UserError` with one line a flag."""
        self.version: Version = version
        self.table = table
        self.written: dict[str, str] = {}
        """As the command has them, by name in the table."""
        self._values: dict[str, Any] = {}
        self._used: set[str] = set()
        problems: list[str] = []
        for flag, values in _split(command, arguments):
            name = flag.replace("-", "_")
            name = name if name in table else old_names.get(name, name)
            if name not in table:
                problems.append(f"--{flag}: unknown flag of {command}{_nearest(flag, [*table, *old_names])}")
                continue
            try:
                self._values[name] = table[name].read(values)
            except ValueError as error:
                problems.append(f"--{flag} {' '.join(values)}: {error}")
            if name in self.written:
                problems.append(f"--{flag}: given twice")
            self.written[name] = f"--{flag} ***" if name in SECRETS else " ".join([f"--{flag}", *values])
        if problems:
            raise UserError("\n".join(problems))

    def __getitem__(self, name: str) -> Any:
        """As given, or ms-swift's default."""
        self._used.add(name)
        if name in self._values:
            return self._values[name]
        default = self.table[name].default if name in self.table else None
        return (default.before if self.version == "3.6" else default.now) if isinstance(default, Moved) else default

    def derive(self, name: str, value: Any) -> None:
        """Set what follows from other flags."""
        self._values[name] = value

    def gives(self, name: str) -> bool:
        """Whether the command has it."""
        return name in self.written

    def unused(self) -> list[str]:
        """Flags that the command has and nothing asked for."""
        return [name for name in self.written if name not in self._used]


def _split(command: str, arguments: Sequence[str]) -> Iterable[tuple[str, list[str]]]:
    """Flags and the words after them."""
    found: list[tuple[str, list[str]]] = []
    for word in arguments:
        if word.startswith("--"):
            flag, equals, value = word[2:].partition("=")
            found.append((flag, [value] if equals else []))
        elif found:
            found[-1][1].append(word)
        else:
            raise UserError(f"{command} {word}: configuration files are not read; give the flags themselves")
    return found


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean --{close[0]}?" if close else ""
