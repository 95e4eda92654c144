"""The files and data sets of sources that are streamed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlflow.data.files import check_json, list_files, stream_file
from rlflow.data.rows import Format
from rlflow.data.sources import (
    Detect,
    check_columns,
    detect_part,
    list_subsets,
    load_hugging_face_dataset,
    load_source,
    split_name,
)
from rlflow.errors import DataError
from rlflow.spec.data import DataSpec
from rlflow.spec.sources import FileSource, HubSource

if TYPE_CHECKING:
    from datasets import IterableDataset

Open = Callable[[], "IterableDataset"]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A row of a stream."""

    part: "StreamPart"
    number: int
    """Of the row in its part, counted from 1."""
    columns: dict[str, Any]


@dataclass(frozen=True, slots=True)
class StreamPart:
    """A file or data set; its first `num_held_out` rows are not streamed."""

    name: str
    open: Open
    format: Format
    source: int
    num_held_out: int = 0

    def first(self, count: int | None) -> list[Drawn]:
        """At most `count` of its first rows, or all. Raises `DataError`."""
        return [] if count == 0 else list(islice(self._read(self.open, 0), count))

    def rest(self, position: int, state: dict[str, Any] | None) -> tuple["IterableDataset", Iterator[Drawn]]:
        """The streamed rows from `position` on, where the data set's own state was `state`; and the data set, which knows it."""
        rows = self.open().skip(self.num_held_out)
        if state is not None:
            rows.load_state_dict(state)
        return rows, self._read(lambda: rows, self.num_held_out + position)

    def _read(self, load: Open, number: int) -> Iterator[Drawn]:
        for row in read_stream(self.name, load, number):
            number += 1
            yield Drawn(self, number, row)


def read_stream(name: str, load: Open, number: int = 0) -> Iterator[dict[str, Any]]:
    """Rows of a stream, of which `number` were read before. Raises `DataError`; of a JSON file it names the row."""
    from datasets.exceptions import DatasetsError

    try:
        for row in load():
            number += 1
            yield row
    except (DatasetsError, ValueError, TypeError, OSError, NotImplementedError, RuntimeError) as error:
        if Path(name).suffix in (".json", ".jsonl"):
            check_json(Path(name))
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise DataError(f"{name}: cannot be read after row {number}: {reason}") from None


def open_parts(spec: DataSpec, cache_dir: Path, detect: Detect) -> Iterator[StreamPart]:
    """Every file and data set of the sources, in their order; of those that can be streamed only the beginning is read.

    Raises:
        DataError: a source is missing, unreadable or empty, or its columns do not hold what the job needs.
    """
    for number, source in enumerate(spec.sources):
        field = f"data.sources[{number}]"
        if isinstance(source, FileSource):
            for file in list_files(source.path, f"{field}.path"):
                yield _open_part(str(file), partial(stream_file, file), source, number, detect)
        elif isinstance(source, HubSource) and source.hub == "huggingface":
            for subset in list_subsets(source, field):
                load = partial(load_hugging_face_dataset, source.id, subset, source.split, cache_dir, field, streaming=True)
                yield _open_part(split_name(source.id, subset, source.split), load, source, number, detect)
        else:  # generated, or of a hub without streams
            for part in load_source(source, number, spec, cache_dir, detect):
                yield StreamPart(part.name, part.dataset.to_iterable_dataset, part.format, number)


def _open_part(name: str, load: Open, source: FileSource | HubSource, number: int, detect: Detect) -> StreamPart:
    columns = _columns(name, load)
    check_columns(columns, source.columns, f"data.sources[{number}]", name)
    renamed = [source.columns.get(column, column) for column in columns]
    opened = (lambda: load().rename_columns(source.columns)) if source.columns else load
    return StreamPart(name, opened, detect_part(name, renamed, detect), number)


def _columns(name: str, load: Open) -> list[str]:
    """Those of the first row."""
    first = next(read_stream(name, load), None)
    if first is None:
        raise DataError(f"{name}: has no rows")
    return list(first)
