"""YAML and command-line overrides to job specs, with every problem reported at once."""

import difflib
import hashlib
import json
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from rlflow.errors import SpecError
from rlflow.spec.jobs import JOB_SPECS, GrpoJob, SftJob

_KINDS: dict[str, type[SftJob | GrpoJob]] = {"sft": SftJob, "grpo": GrpoJob}


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML 1.1, but a key given twice is an error and `1e-4` is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_UniqueKeyLoader.yaml_implicit_resolvers = {
    first: list(resolvers) for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# YAML 1.1 reads 1e-4 (no dot) as a string; everyone who writes a learning rate means the number.
_UniqueKeyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> SftJob | GrpoJob:
    """Read a job spec from a YAML file and apply `key=value` overrides.

    Raises `SpecError` with one line a problem, each starting with the path of its field.
    """
    return parse_job(read_yaml(path), overrides, origin=str(path))


def parse_job(
    document: dict[str, Any], overrides: Sequence[str] = (), *, origin: str = "spec"
) -> SftJob | GrpoJob:
    """Validate a job spec given as plain data."""
    document = json.loads(json.dumps(document))
    for override in overrides:
        _apply_override(document, override)
    kind = document.get("kind")
    if kind not in _KINDS:
        raise SpecError(f"{origin}: kind: {_unknown_kind(kind)}")
    try:
        return JOB_SPECS.validate_python(document)
    except ValidationError as error:
        lines = [f"{origin}: {line}" for line in _problems(error, _KINDS[kind])]
        raise SpecError("\n".join(dict.fromkeys(lines))) from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        document = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise SpecError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise SpecError(f"{path}: a spec is a mapping of fields, this is {type(document).__name__}")
    return document


def resolved(job: SftJob | GrpoJob) -> dict[str, Any]:
    """The spec with every default filled in, as JSON data."""
    return job.model_dump(mode="json")


def spec_hash(job: SftJob | GrpoJob) -> str:
    """A short fingerprint of the resolved spec."""
    return hashlib.sha256(json.dumps(resolved(job), sort_keys=True).encode()).hexdigest()[:12]


def _unknown_kind(kind: Any) -> str:
    known = ", ".join(_KINDS)
    return (
        f"missing; one of {known}"
        if kind is None
        else f"unknown kind {kind!r}{_nearest(str(kind), _KINDS)}; one of {known}"
    )


def _apply_override(document: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.split(".")
    if not separator or not all(parts):
        raise SpecError(
            f"override {override!r}: write key=value, with dots between the names of nested fields"
        )
    value = yaml.load(text, Loader=_UniqueKeyLoader)
    target: Any = document
    for i, part in enumerate(parts[:-1]):
        target = (
            target[int(part)]
            if isinstance(target, list) and _is_index(part, target)
            else _descend(target, part, parts[: i + 1])
        )
    if isinstance(target, list) and _is_index(parts[-1], target):
        target[int(parts[-1])] = value
    elif isinstance(target, dict):
        target[parts[-1]] = value
    else:
        raise SpecError(f"override {override!r}: {'.'.join(parts[:-1])} has no fields")


def _is_index(part: str, target: list[Any]) -> bool:
    return part.isdigit() and int(part) < len(target)


def _descend(target: Any, part: str, path: list[str]) -> Any:
    if not isinstance(target, dict):
        raise SpecError(f"override {'.'.join(path)}: there is no such field or item")
    if target.get(part) is None:
        target[part] = {}
    return target[part]


def _problems(error: ValidationError, model: type[BaseModel]) -> list[str]:
    return [_problem(dict(item), model) for item in error.errors(include_url=False)]


def _problem(item: dict[str, Any], model: type[BaseModel]) -> str:
    location, owner = _named_location(item["loc"], model)
    path = _dotted(location)
    if item["type"] == "extra_forbidden":
        return f"{path}: unknown field{_nearest(str(location[-1]), owner.model_fields if owner else ())}"
    if item["type"] == "missing":
        return f"{path}: missing"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{path}: {message}" if path else message
    return f"{path}: {message} (got {item['input']!r})"


def _named_location(
    location: tuple[int | str, ...], model: type[BaseModel]
) -> tuple[list[int | str], type[BaseModel] | None]:
    """The path as the user wrote it (without pydantic's union tags), and the model that holds its last part."""
    path: list[int | str] = []
    owners: list[type[BaseModel]] = [model]
    holder: type[BaseModel] | None = model
    for position, part in enumerate(location):
        if isinstance(part, str) and part in _tags(owners) and part not in _fields(owners):
            owners = [owner for owner in owners if part in _tags([owner])]
            holder = owners[0]
            continue
        path.append(part)
        if isinstance(part, str):
            holder = owners[0] if owners else None
            if position < len(location) - 1:
                owners = [
                    m
                    for owner in owners
                    if part in owner.model_fields
                    for m in _models_in(owner.model_fields[part].annotation)
                ]
    return path, holder


def _fields(owners: list[type[BaseModel]]) -> set[str]:
    return {name for owner in owners for name in owner.model_fields}


def _tags(owners: list[type[BaseModel]]) -> set[str]:
    return {
        tag
        for owner in owners
        for field in ("type", "kind")
        if field in owner.model_fields
        for tag in typing.get_args(owner.model_fields[field].annotation)
    }


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in typing.get_args(annotation) for model in _models_in(argument)]


def _dotted(location: list[int | str]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
