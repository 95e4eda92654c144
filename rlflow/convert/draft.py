"""A spec in the making, and the notes that go with it."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from rlflow.convert.flags import Settings
from rlflow.spec.jobs import JOB_KINDS, RolloutJob

NoteKind = Literal["warning", "changed", "no equivalent", "same"]
"""The command does what its reader may not expect; mapped with another meaning; nothing there is like it; nothing to set."""
NOTE_KINDS: tuple[str, ...] = get_args(NoteKind)
"""The most important first."""


@dataclass(frozen=True, slots=True)
class Note:
    """One line for the user."""

    kind: NoteKind
    what: str
    """The flag as the command has it, or what it is about."""
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}: {self.text}"


@dataclass(slots=True)
class Draft:
    """Fields of a spec, and notes."""

    kind: str
    document: dict[str, Any] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)

    def set(self, path: str, value: Any, *, given: bool = True) -> None:
        """Set a field, `learner.schedule.type` say. What the command does not give is set only where rlflow's default differs."""
        if value is None or (not given and value == default_of(self.kind, path)):
            return
        target = self.document
        *parents, name = path.split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
        target[name] = value

    def note(self, kind: NoteKind, what: str, text: str) -> None:
        """Add a note."""
        self.notes.append(Note(kind, what, text))

    def apply_fields(self, settings: Settings) -> None:
        """Fields that the table alone gives."""
        for name, flag in settings.table.items():
            if flag.field:
                self.set(flag.field, settings[name], given=settings.gives(name))

    def apply_notes(self, settings: Settings) -> None:
        """What the table alone says of the flags that the command has."""
        for name, what in settings.written.items():
            flag = settings.table[name]
            if flag.same and (not flag.when or settings[name] in flag.when):
                self.note("same", what, flag.same)
            elif flag.missing:
                self.note("no equivalent", what, flag.missing)
            elif flag.changed:
                self.note("changed", what, flag.changed)


def default_of(kind: str, path: str) -> Any:
    """rlflow's default of a field; `PydanticUndefined` if it has none, or belongs to something optional."""
    model: Any = JOB_KINDS.get(kind, RolloutJob)
    *parents, name = path.split(".")
    for parent in parents:
        annotation = model.model_fields[parent].annotation
        models = [annotation, *get_args(annotation)]
        default = model.model_fields[parent].default
        if isinstance(default, BaseModel):  # its values, which may differ from those of its class
            return _inside(default, path.split(".")[path.split(".").index(parent) + 1 :])
        model = next((m for m in models if isinstance(m, type) and issubclass(m, BaseModel)), None)
    return model.model_fields[name].default if model else PydanticUndefined


def _inside(value: Any, names: list[str]) -> Any:
    for name in names:
        value = getattr(value, name, PydanticUndefined)
    return value
