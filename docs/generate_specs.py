"""Writes the field tables of docs/specs.md from the JSON Schema of job specs: `python docs/generate_specs.py`."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlflow.spec.jobs import job_schema

PAGE = Path(__file__).with_name("specs.md")
MARK = "<!-- Everything below is written by docs/generate_specs.py from the docstrings of rlflow/spec. -->\n"
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_WORDS = {
    "object": "mapping",
    "string": "text",
    "boolean": "true or false",
    "integer": "integer",
    "number": "number",
    "null": "null",
}

Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Section:
    """One table: the fields at a place of a spec."""

    title: str
    description: str
    fields: dict[str, Schema]
    required: frozenset[str]


class Reference:
    """The tables of all specs."""

    def __init__(self, schema: Schema) -> None:
        self._models: dict[str, Schema] = schema["$defs"]
        self._titles: dict[str, str] = {}
        self._kind = ""
        jobs = [self._models[_target(option)] for option in schema["oneOf"]]
        self.sections = [*_job_sections(jobs)]
        for job in jobs:
            self._kind = job["properties"]["kind"]["const"]
            self.sections += self._nested(job, "")

    def render(self) -> str:
        """All tables as Markdown."""
        return "\n".join(self._table(section) for section in self.sections)

    def _nested(self, model: Schema, path: str) -> Iterator[Section]:
        """Sections of the models inside a model, each once, in the order of its fields."""
        for name, field in model["properties"].items():
            for target in _targets(field):
                if target in self._titles:
                    continue
                inner, place = self._models[target], f"{path}{name}"
                tag = inner["properties"].get("type", {}).get("const")
                title = f"`{place}` of `type: {tag}`" if tag else f"`{place}`"
                # Another model at the place that one of an earlier kind has.
                self._titles[target] = f"{title} of `kind: {self._kind}`" if title in self._titles.values() else title
                yield _section(self._titles[target], inner)
                yield from self._nested(inner, f"{place}.")

    def _table(self, section: Section) -> str:
        rows = [self._row(name, field, section.required) for name, field in section.fields.items()]
        head = ["| field | type | default | meaning |", "|---|---|---|---|"]
        return "\n".join([f"## {section.title}", "", section.description, "", *head, *rows, ""])

    def _row(self, name: str, field: Schema, required: frozenset[str]) -> str:
        cells = (f"`{name}`", self._type(field), _default(name, field, required), field["description"])
        return f"| {' | '.join(_cell(cell) for cell in cells)} |"

    def _type(self, field: Schema) -> str:
        """A type in words; models become links to their tables."""
        if "$ref" in field:
            title = self._titles[_target(field)]
            return f"[{title.rpartition(' of ')[2]}](#{_anchor(title)})"
        if "const" in field or "enum" in field:
            return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
        if options := field.get("anyOf") or field.get("oneOf"):
            return self._union_type(options)
        if field["type"] == "array":
            return self._list_type(field)
        bounds = [f"{sign} {field[key]:g}" for key, sign in _BOUNDS.items() if key in field]
        return f"{_WORDS[field['type']]} {', '.join(bounds)}".strip()

    def _union_type(self, options: list[Schema]) -> str:
        words = [self._type(option) for option in options]
        if words[-1] == f"list of {' or '.join(words[:-1])}":
            words[-1] = "a list of these"
        return " or ".join(words)

    def _list_type(self, field: Schema) -> str:
        if "prefixItems" in field:
            return f"[{', '.join(self._type(item) for item in field['prefixItems'])}]"
        return f"list of {self._type(field['items'])}"


def updated_page(page: str) -> str:
    """The page with its part below the mark written anew."""
    introduction, mark, _ = page.partition(MARK)
    assert mark, f"{PAGE.name} has lost the line {MARK}"
    return f"{introduction}{MARK}\n{Reference(job_schema()).render()}"


def _job_sections(jobs: list[Schema]) -> Iterator[Section]:
    """The fields that every kind of job has, those that every kind that trains has too, then those of each kind."""
    training = [job for job in jobs if "learner" in job["properties"]]
    everywhere, in_training = _shared(jobs), _shared(training)
    whole = _section("", training[0])
    for title, description, names in (
        ("Every job", "Fields that every kind of job has.", everywhere),
        ("Every job that trains", "Fields that every kind but `infer` has too.", [n for n in in_training if n not in everywhere]),
    ):
        yield Section(title, description, {name: whole.fields[name] for name in names}, whole.required)
    for job in jobs:
        section = _section(f"`kind: {job['properties']['kind']['const']}`", job)
        shared = in_training if job in training else everywhere
        own = {name: field for name, field in section.fields.items() if name not in shared}
        yield Section(section.title, section.description, own, section.required)


def _shared(jobs: list[Schema]) -> list[str]:
    return [name for name in jobs[0]["properties"] if all(name in job["properties"] for job in jobs) and name != "kind"]


def _section(title: str, model: Schema) -> Section:
    return Section(title, model["description"], model["properties"], frozenset(model.get("required", ())))


def _targets(field: Schema) -> Iterator[str]:
    """Names of the models that a field may hold."""
    if "$ref" in field:
        yield _target(field)
    inner = [*field.get("anyOf", ()), *field.get("oneOf", ())]
    inner += [field["items"]] if "items" in field else []
    for option in inner:
        yield from _targets(option)


def _target(field: Schema) -> str:
    return field["$ref"].rpartition("/")[2]


def _cell(text: str) -> str:
    """Text that stays inside its cell."""
    return " ".join(text.split()).replace("|", "\\|")


def _default(name: str, field: Schema, required: frozenset[str]) -> str:
    if name in required or "const" in field:  # a union's tag has a default, and yet it must be written
        return "required"
    if "$ref" in field:
        return "its defaults"
    # A default that is made anew for each spec is not in the schema; all of ours are empty mappings.
    assert "default" in field or field["type"] == "object", f"{name} has neither a default nor is it required"
    value = field.get("default", {})
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"


def _anchor(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


if __name__ == "__main__":
    PAGE.write_text(updated_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
