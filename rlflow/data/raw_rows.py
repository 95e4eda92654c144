"""Rows as their files hold them, for batch inference: a bad row is an error when it is asked for, not when its file is opened."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlflow.data.files import load_file
from rlflow.data.formats import detect_format
from rlflow.data.rows import Part, Row, Rows
from rlflow.data.sources import Detect, load_sources
from rlflow.errors import DataError
from rlflow.spec.data import DataSpec


class JsonLines:
    """A .jsonl file by line, read on demand; only the lines' places are in memory. Blank lines are no rows."""

    def __init__(self, path: Path, names: Mapping[str, str] | None = None) -> None:
        """`names`: columns to rename."""
        self._path, self._names = path, dict(names or {})
        self._starts = _line_starts(path)
        self.column_names = list(self._first())

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The row. Raises `DataError` that does not name it, if it is no JSON object."""
        with self._path.open("rb") as file:
            file.seek(self._starts[index])
            line = file.readline()
        try:
            row: dict[str, Any] = json.loads(line)
        except ValueError as error:
            raise DataError(f"not valid JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"is {type(row).__name__}, expected a JSON object")
        return {self._names.get(name, name): value for name, value in row.items()}

    def rename_columns(self, names: Mapping[str, str]) -> "JsonLines":
        """The same rows with other names of columns."""
        return JsonLines(self._path, names)

    def _first(self) -> dict[str, Any]:
        """The first row that can be read: its columns tell how all are."""
        for index in range(len(self)):
            try:
                return self[index]
            except DataError:
                continue
        raise DataError(f"{self._path}: no line of it is a JSON object")


class RawRows(Rows):
    """Rows with exactly the columns that each has."""

    def __getitem__(self, index: int) -> Row:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A row. Raises `DataError` that does not name it, if it is malformed."""
        part, position = self._locate(index)
        values = part.dataset[position]
        missing = {name: None for name in part.format.columns if name not in values}
        columns = {name: value for name, value in values.items() if name != part.format.chat}
        return Row(part.format.read(values | missing), columns, self.origin(index))

    def read(self, indices: Sequence[int]) -> list[Any]:
        """What the format reads of rows. Raises `DataError` that does not name the row, if one is malformed."""
        return [self[index].messages for index in indices]

    def digests(self) -> dict[str, str]:
        """A digest of the content of each file or data set, by its name: rows are known by their numbers in it."""
        return {part.name: _digest(part) for part in self.parts}

    def row_ids(self) -> list[str]:
        """A name for every row that stays the same in every start: file and number, and which repeat of it this is."""
        seen: dict[str, int] = {}
        ids = []
        for index in range(len(self)):
            origin = _id(*self._locate(index))
            seen[origin] = repeat = seen.get(origin, 0) + 1
            ids.append(origin if repeat == 1 else f"{origin}~{repeat}")
        return ids


def load_raw_rows(spec: DataSpec, cache_dir: str | Path, detect: Detect = detect_format) -> RawRows:
    """The rows of all sources, one source after the other. Raises `DataError` for a source that cannot be opened at all."""
    rows = load_sources(spec, cache_dir, detect, _open)
    return RawRows(rows.parts, rows.positions)


def _open(file: Path, cache_dir: Path) -> Any:
    if file.suffix == ".jsonl" and file.stat().st_size:
        return JsonLines(file)
    return load_file(file, cache_dir)


def _digest(part: Part) -> str:
    """Of a file's bytes, which no version of a library reads otherwise; of a data set's table."""
    file = Path(part.name)
    if not file.is_file():
        return part.content().hex()
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "blake2b").hexdigest()[:32]


def _id(part: Part, position: int) -> str:
    return f"{part.name}:{position + 1}"


def _line_starts(path: Path) -> Sequence[int]:
    """Byte offsets of the lines that are not blank."""
    starts, offset = [], 0
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                starts.append(offset)
            offset += len(line)
    return np.asarray(starts, dtype=np.int64)  # pyright: ignore[reportReturnType]
