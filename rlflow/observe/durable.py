"""Files that survive a crash: written beside, flushed to the disk, then renamed into place."""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step: a reader, or a crash, finds the old content or the new."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with beside.open("wb") as file:
        # A lone surrogate, which UTF-8 cannot hold, becomes \udXXX: inside JSON the same string, escaped.
        file.write(text.encode("utf-8", "backslashreplace"))
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    sync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as indented JSON."""
    write_text(path, json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Replace `path` by one line of JSON per row."""
    write_text(path, "".join(json_line(row) for row in rows))


def json_line(value: Any) -> str:
    """`value` as one line of JSON, newline included."""
    return json.dumps(finite(value), ensure_ascii=False, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """`value` with every NaN and infinity, which JSON lacks, replaced by None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def sync_tree(directory: Path) -> None:
    """Flush every file and folder below `directory`, and itself, to the disk."""
    for folder, _, files in os.walk(directory, topdown=False):
        for name in files:
            _sync(Path(folder, name))
        sync_directory(Path(folder))


def sync_directory(directory: Path) -> None:
    """Flush a folder's entries, so that what was created or renamed in it stays."""
    _sync(directory)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
