"""Rows of mixed sources: Arrow tables and an index into them, so that sampling and splitting copy nothing."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np

from rlflow.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset


class Format(Protocol):
    """How a part's rows are read: as a conversation (`RowFormat`), a pair of them, or with a label."""

    @property
    def chat(self) -> str | None:
        """The column of message lists, which is no column for rewards."""
        ...

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        ...

    def read(self, row: Mapping[str, Any]) -> Any:
        """What the row holds. Raises `DataError` that does not name the row."""
        ...


@dataclass(frozen=True, slots=True)
class Part:
    """One loaded file or data set: its table, its name in messages, and how its rows are read."""

    name: str
    dataset: "Dataset"
    format: Format
    source: int = 0
    """Which of the spec's sources it belongs to."""
    numbers: Sequence[int] | None = None
    """Of its rows, for messages, counted from 1; None: of all rows in order."""

    def row_name(self, position: int) -> str:
        """A row, for messages: `file.jsonl, row 17`."""
        return f"{self.name}, row {position + 1 if self.numbers is None else self.numbers[position]}"

    def fingerprint(self) -> bytes:
        """Digest of the name, the content and how it is read: the same for the same rows, wherever they are cached."""
        return hashlib.blake2b(f"{self.name}\0{self.format}".encode() + self.content(), digest_size=16).digest()

    def content(self) -> bytes:
        """Digest of the table."""
        table = self.dataset.data.table
        digest = hashlib.blake2b(repr(table.schema.remove_metadata()).encode(), digest_size=16)
        for batch in table.to_batches():
            digest.update(batch.serialize())
        return digest.digest()


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its messages (or what else its format reads), its other columns under their own names, and its origin."""

    messages: Any
    columns: dict[str, Any]
    origin: str


class Rows(Sequence[Row]):
    """A sequence of rows drawn from parts. A row is read, and checked, when it is asked for."""

    def __init__(self, parts: Sequence[Part], positions: np.ndarray) -> None:
        """`positions`: int64 [num_rows, 2], the part and the row within it."""
        self.parts = tuple(parts)
        self.positions = positions
        names = {name: None for part in parts for name in part.dataset.column_names}
        chats = {part.format.chat for part in parts}
        self.column_names = tuple(name for name in names if name not in chats)

    def __len__(self) -> int:
        return len(self.positions)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> "Rows": ...
    def __getitem__(self, index: int | slice) -> "Row | Rows":
        """A row; a column that only other parts have is None in it.

        Raises:
            DataError: the row is malformed.
        """
        if isinstance(index, slice):
            return Rows(self.parts, self.positions[index])
        part, position = self._locate(index)
        values = part.dataset[position]
        columns = {name: values.get(name) for name in self.column_names}
        return Row(self._read(part, values, index), columns, self.origin(index))

    def take(self, indices: Sequence[int] | np.ndarray) -> "Rows":
        """The rows at these indices, in this order."""
        return Rows(self.parts, self.positions[np.asarray(indices, dtype=np.int64)])

    def origin(self, index: int) -> str:
        """Where a row came from, for messages: `file.jsonl, row 17`, counted from 1."""
        part, position = self._locate(index)
        return part.row_name(position)

    def source(self, index: int) -> int:
        """The number of the spec's source that a row came from."""
        return self._locate(index)[0].source

    def read(self, indices: Sequence[int]) -> list[Any]:
        """What the format reads of many rows, such as their messages; touches only the columns that hold it.

        Raises:
            DataError: a row is malformed.
        """
        found: dict[int, Any] = {}
        which = self.positions[np.asarray(indices, dtype=np.int64), 0]
        for number, part in enumerate(self.parts):
            chosen = [index for index, belongs in zip(indices, which == number, strict=True) if belongs]
            if not chosen:
                continue
            columns = part.dataset.select_columns(part.format.columns)[self.positions[chosen, 1].tolist()]
            for offset, index in enumerate(chosen):
                values = {name: column[offset] for name, column in columns.items()}
                found[index] = self._read(part, values, index)
        return [found[index] for index in indices]

    def fingerprint(self) -> str:
        """Digest of the rows and their order."""
        digest = hashlib.blake2b(digest_size=16)
        for part in self.parts:
            digest.update(part.fingerprint())
        digest.update(np.ascontiguousarray(self.positions).tobytes())
        return digest.hexdigest()

    def _locate(self, index: int) -> tuple[Part, int]:
        part, position = self.positions[index].tolist()
        return self.parts[part], position

    def _read(self, part: Part, values: dict[str, Any], index: int) -> Any:
        try:
            return part.format.read(values)
        except DataError as error:
            raise DataError(f"{self.origin(index)}: {error}") from None
