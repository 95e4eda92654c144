"""YAML and command-line overrides to job specs, with every problem reported at once."""

import difflib
import hashlib
import json
import re
import typing
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from rlflow.errors import SpecError
from rlflow.spec.jobs import JOB_KINDS, Job


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML 1.1, but a key given twice is an error, `1e-4` is a number and `2026-01-31` is text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                break  # the base class names the place
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_UniqueKeyLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# YAML 1.1 reads 1e-4 (no dot) as a string; everyone who writes a learning rate means the number.
_UniqueKeyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> Job:
    """Read a job spec from a YAML file and apply `key=value` overrides.

    Raises `SpecError` with one line a problem, each starting with the path of its field.
    """
    return parse_job(read_yaml(path), overrides, origin=str(path))


def parse_job(document: dict[str, Any], overrides: Sequence[str] = (), *, origin: str = "spec") -> Job:
    """Validate a job spec given as plain data."""
    document = json.loads(json.dumps(document))
    for override in overrides:
        _apply_override(document, override)
    kind = document.get("kind")
    if not isinstance(kind, str) or kind not in JOB_KINDS:
        raise SpecError(f"{origin}: kind: {_unknown(kind, JOB_KINDS)}")
    try:
        return JOB_KINDS[kind].model_validate(document)
    except ValidationError as error:
        problems = _problems(error, JOB_KINDS[kind], document)
        lines = [f"{origin}: {line}" for problem in problems for line in problem.splitlines()]
        raise SpecError("\n".join(dict.fromkeys(lines))) from None
    except SpecError as error:
        raise SpecError(f"{origin}: {error}") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        document = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise SpecError(f"{path}{_yaml_problem(error)}") from None
    if document is None:
        raise SpecError(f"{path}: the file is empty")
    if not isinstance(document, dict):
        found = {list: "list", str: "text"}.get(type(document), "single value")
        raise SpecError(f"{path}: a spec is a mapping of fields (`kind: sft` and so on), this is a {found}")
    return document


def resolved(job: Job) -> dict[str, Any]:
    """The spec with every default filled in, as JSON data."""
    return job.model_dump(mode="json")


def spec_hash(job: Job) -> str:
    """A short fingerprint of the resolved spec."""
    return hashlib.sha256(json.dumps(resolved(job), sort_keys=True).encode()).hexdigest()[:12]


def job_metadata(jobs: Sequence[Job]) -> dict[str, str]:
    """What a cluster lists beside a job; of several specs, their values in order."""
    columns = {
        "run": [job.run.name for job in jobs],
        "algorithm": [job.kind for job in jobs],
        "model": [job.model.label for job in jobs],
        "spec_hash": [spec_hash(job) for job in jobs],
    }
    return {name: ", ".join(values) for name, values in columns.items()}


def _yaml_problem(error: yaml.YAMLError) -> str:
    """Where in the file, and what."""
    mark = getattr(error, "problem_mark", None)
    place = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
    return f"{place}: not valid YAML: {_yaml_reason(error)}"


def _yaml_reason(error: yaml.YAMLError) -> str:
    return getattr(error, "problem", None) or " ".join(str(error).split())


def _apply_override(document: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.split(".")
    if not separator or not all(parts):
        raise SpecError(f"override {override!r}: write key=value, with dots between the names of nested fields")
    try:
        value = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise SpecError(f"override {override!r}: not valid YAML: {_yaml_reason(error)}") from None
    target: Any = document
    for i, part in enumerate(parts[:-1]):
        target = (
            target[int(part)] if isinstance(target, list) and _is_index(part, target) else _descend(target, part, parts[: i + 1])
        )
    if isinstance(target, list) and _is_index(parts[-1], target):
        target[int(parts[-1])] = value
    elif isinstance(target, dict):
        target[parts[-1]] = value
    else:
        raise SpecError(f"override {override!r}: {'.'.join(parts[:-1])} has no field or item {parts[-1]}")


def _is_index(part: str, target: list[Any]) -> bool:
    return part.isdecimal() and int(part) < len(target)


def _descend(target: Any, part: str, path: list[str]) -> Any:
    if not isinstance(target, dict):
        raise SpecError(f"override {'.'.join(path)}: there is no such field or item")
    if target.get(part) is None:
        target[part] = {}
    return target[part]


def _problems(error: ValidationError, model: type[BaseModel], document: dict[str, Any]) -> list[str]:
    items: list[dict[str, Any]] = [dict(item) for item in error.errors(include_url=False)]
    return [
        _problem(item, model, document)
        for item in items
        # pydantic also calls a list too short if none of its items is valid
        if item["type"] != "too_short" or len(item["input"]) == item["ctx"]["actual_length"]
    ]


def _problem(item: dict[str, Any], model: type[BaseModel], document: dict[str, Any]) -> str:
    kind, location = item["type"], item["loc"]
    path, owners = _place(location[:-1] if kind == "missing" else location, model, document)
    dotted = _dotted(path)
    if kind == "extra_forbidden":
        return f"{dotted}: unknown field{_nearest(str(path[-1]), _fields(owners))}"
    if kind == "missing":
        return f"{_dotted([*path, location[-1]])}: missing"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        field = item["ctx"]["discriminator"].strip("'")
        return f"{dotted}.{field}: {_unknown(item['ctx'].get('tag'), _tags(_members(owners, path)))}"
    message = item["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return "\n".join(f"{dotted}: {line}" if dotted else line for line in message.splitlines())
    return f"{dotted}: {message} (got {item['input']!r})"


def _place(
    location: tuple[int | str, ...], model: type[BaseModel], document: dict[str, Any]
) -> tuple[list[int | str], list[type[BaseModel]]]:
    """The path as the user wrote it, and the models that may hold its last named field.

    What the user did not write is pydantic's name of a union's member, or lies inside a value that a string is short for.
    """
    path: list[int | str] = []
    holders = owners = [model]
    value: Any = document
    for part in location:
        if not _has(value, part):
            owners = [owner for owner in owners if part in _tags([owner])] or owners
            continue
        path.append(part)
        value = value[part]
        if isinstance(part, str):
            holders, owners = owners, _members(owners, [part])
    return path, holders


def _has(value: Any, part: int | str) -> bool:
    return part in value if isinstance(value, dict) else isinstance(value, list) and part in range(len(value))


def _members(owners: list[type[BaseModel]], path: list[int | str]) -> list[type[BaseModel]]:
    """Models that the last named field of `path` may contain, in any of its holders."""
    field = next(part for part in reversed(path) if isinstance(part, str))
    annotations = [owner.model_fields[field].annotation for owner in owners if field in owner.model_fields]
    return [model for annotation in annotations for model in _models_in(annotation)]


def _fields(owners: list[type[BaseModel]]) -> list[str]:
    return list(dict.fromkeys(name for owner in owners for name in owner.model_fields))


def _tags(owners: list[type[BaseModel]]) -> list[str]:
    annotations = [owner.model_fields["type"].annotation for owner in owners if "type" in owner.model_fields]
    return [tag for annotation in annotations for tag in typing.get_args(annotation)]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in typing.get_args(annotation) for model in _models_in(argument)]


def _dotted(location: list[int | str]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _unknown(name: Any, known: Iterable[str]) -> str:
    one_of = f"one of {', '.join(known)}"
    return f"missing; {one_of}" if name is None else f"unknown: {name!r}{_nearest(str(name), known)}; {one_of}"


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    short_for = [field for field in known if name == "".join(word[:1] for word in field.split("_"))]  # lr: learning_rate
    close = short_for or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
