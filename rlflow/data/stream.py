"""Sources read as a job goes, never loaded whole: an endless stream of rows that can be continued from anywhere."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlflow.data.rows import Part, Rows
from rlflow.data.source_streams import Drawn, StreamPart, open_parts
from rlflow.data.sources import Detect
from rlflow.errors import DataError
from rlflow.spec.data import DataSpec

if TYPE_CHECKING:
    from datasets import IterableDataset

_DRAWING, _SHUFFLING = 3, 4
"""Streams of random numbers."""


@dataclass(slots=True)
class Chain:
    """Parts read one after the other, pass after pass."""

    parts: Sequence[StreamPart]
    passes: int = 0
    at: int = 0
    position: int = 0
    """Rows of the part that were read in this pass."""
    _open: "tuple[IterableDataset, Iterator[Drawn]] | None" = field(default=None, repr=False)
    _restored: dict[str, Any] | None = None
    """The open data set's state until a row is drawn of it: it does not tell itself before."""

    def draw(self) -> Drawn:
        """The next row. Raises `DataError` if a part cannot be read, or none has a row."""
        for _ in range(len(self.parts) + 1):
            opened = self._open = self._open or self.parts[self.at].rest(0, None)
            drawn = next(opened[1], None)
            self._restored = None
            if drawn is not None:
                self.position += 1
                return drawn
            after = self.at + 1
            self._go(self.passes + after // len(self.parts), after % len(self.parts), 0)
        raise DataError(f"{self.parts[0].name}: no row is left to train on")

    def state(self) -> dict[str, Any]:
        """Where it is, for JSON."""
        own = self._restored or (self._open[0].state_dict() if self._open is not None else None)
        return {"passes": self.passes, "at": self.at, "position": self.position, "data_set": own}

    def restore(self, state: dict[str, Any]) -> None:
        """Go there."""
        self._go(state["passes"], state["at"], state["position"])
        if state["data_set"] is not None:
            self._restored = state["data_set"]
            self._open = self.parts[self.at].rest(self.position, state["data_set"])

    def _go(self, passes: int, at: int, position: int) -> None:
        self.passes, self.at, self.position, self._open, self._restored = passes, at, position, None, None


class RowStream:
    """The training rows of all sources, in windows of `data.streaming.buffer_rows` that are shuffled each.

    Without `data.mix` the sources follow each other; with it each row's source is drawn. Both start anew at the end.
    """

    def __init__(self, parts: Sequence[StreamPart], spec: DataSpec) -> None:
        assert spec.streaming is not None
        self._spec, self._size = spec, spec.streaming.buffer_rows
        weights = () if spec.mix is None else spec.mix.weights
        by_source = [[part for part in parts if part.source == number] for number in range(len(spec.sources))]
        drawn = [(own, weight) for own, weight in zip(by_source, weights, strict=True) if own] if weights else []
        self._chains = [Chain(own) for own, _ in drawn] or [Chain(parts)]
        shares = np.array([weight for _, weight in drawn] or [1.0])
        self._shares = shares / shares.sum()
        self.beginning = self.state()
        """Where the first window begins."""

    @property
    def name(self) -> str:
        """Its first source, for messages."""
        return self._chains[0].parts[0].name

    @property
    def passes(self) -> int:
        """How often every source has been read to its end."""
        return min(chain.passes for chain in self._chains)

    @property
    def most_passes(self) -> int:
        """How often the source that is drawn from most, for its size, has been."""
        return max(chain.passes for chain in self._chains)

    def read(self, window: int) -> Rows:
        """The rows of a window, the next one; their order depends on its number and the seed. Raises `DataError`."""
        choice = np.random.default_rng((self._spec.seed, _DRAWING, window)).choice(len(self._chains), self._size, p=self._shares)
        rows = as_rows([self._chains[number].draw() for number in choice])
        if not self._spec.shuffle:
            return rows
        return rows.take(np.random.default_rng((self._spec.seed, _SHUFFLING, window)).permutation(len(rows)))

    def first_window(self) -> Rows:
        """The rows of the first window, after which the stream is at its beginning again. Raises `DataError`."""
        rows = self.read(0)
        self.restore(self.beginning)
        return rows

    def state(self) -> list[dict[str, Any]]:
        """Where the next window begins, for JSON."""
        return [chain.state() for chain in self._chains]

    def restore(self, state: Sequence[dict[str, Any]]) -> None:
        """Begin the next window there."""
        for chain, own in zip(self._chains, state, strict=True):
            chain.restore(own)


def as_rows(drawn: Sequence[Drawn]) -> Rows:
    """Rows in memory, in the order in which they were drawn, with the columns that are trained on. Raises `DataError`."""
    by_part: dict[int, list[int]] = {}
    for index, row in enumerate(drawn):
        by_part.setdefault(id(row.part), []).append(index)
    positions = np.empty((len(drawn), 2), dtype=np.int64)
    for number, indices in enumerate(by_part.values()):
        positions[indices] = np.stack([np.full(len(indices), number), np.arange(len(indices))], axis=1)
    return Rows([_as_part([drawn[index] for index in indices]) for indices in by_part.values()], positions)


def _as_part(drawn: Sequence[Drawn]) -> Part:
    from datasets import Dataset

    part, numbers = drawn[0].part, tuple(row.number for row in drawn)
    columns = {name: [row.columns.get(name) for row in drawn] for name in part.format.columns}
    try:
        table = Dataset.from_dict(columns, on_mixed_types="use_json")
    except (ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{part.name}, rows {numbers[0]} to {numbers[-1]}: cannot be read as one table: {reason}") from None
    return Part(part.name, table, part.format, part.source, numbers)


def open_stream(spec: DataSpec, cache_dir: Path, detect: Detect) -> tuple[RowStream, Rows]:
    """The stream of training rows, and the held-out rows: the first ones of each source, which the stream leaves out.

    Raises:
        DataError: a source is missing, empty, or too short for what is to be held out.
    """
    held_out: list[Drawn] = []
    streamed: list[StreamPart] = []
    left = _held_out_counts(spec)  # of each source
    for part in open_parts(spec, cache_dir, detect):
        wanted = left[part.source]
        first = part.first(wanted)
        held_out += first
        if wanted is not None:
            left[part.source] = wanted - len(first)
            streamed += [replace(part, num_held_out=len(first))] if not left[part.source] else []
    for number, missing in enumerate(left):
        if missing:
            raise DataError(f"data.sources[{number}]: has {missing} rows fewer than are to be held out")
    if not streamed:
        raise DataError("data.held_out: no row is left to train on")
    return RowStream(streamed, spec), as_rows(held_out)


def _held_out_counts(spec: DataSpec) -> list[int | None]:
    """Rows held out of each source, None: all; what is held out of the sources together is spread evenly."""
    shared = [number for number, source in enumerate(spec.sources) if source.held_out is None]
    counts: list[int | None] = [None if source.held_out == "all" else int(source.held_out or 0) for source in spec.sources]
    for place, number in enumerate(shared):
        counts[number] = int(spec.held_out) // len(shared) + (place < int(spec.held_out) % len(shared))
    return counts
