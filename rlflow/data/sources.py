"""Sources of a spec -> rows: loading, renaming, format detection, sampling and mixing."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlflow.data.files import list_files, load_file, quiet_datasets
from rlflow.data.formats import detect_format
from rlflow.data.puzzles import generate_puzzles
from rlflow.data.rows import Format, Part, Rows
from rlflow.errors import DataError
from rlflow.spec.data import DataSpec, FileSource, HubSource, ReasoningGymSource

if TYPE_CHECKING:
    from datasets import Dataset

_SAMPLING_STREAM = 1
Detect = Callable[[Sequence[str]], Format]
"""From the names of columns to how rows are read; raises `DataError`."""
OpenFile = Callable[[Path, Path], Any]
"""From a file and a folder for its Arrow copy to a table of its rows."""


def load_sources(spec: DataSpec, cache_dir: str | Path, detect: Detect = detect_format, open_file: OpenFile = load_file) -> Rows:
    """The rows of all sources, one source after the other; the Arrow copies of files lie under `cache_dir`.

    `open_file` gives the table of a local file. Rows are read, and malformed ones reported, when they are asked for.

    Raises:
        DataError: a source is missing, unreadable or empty, or its columns do not hold what the job needs.
    """
    parts: list[Part] = []
    positions: list[np.ndarray] = []
    for number, source in enumerate(spec.sources):
        loaded = _load_source(source, f"data.sources[{number}]", Path(cache_dir), detect, open_file)
        every = _list_positions(loaded, first_part=len(parts))
        chosen = _sample(len(every), source.sample, (spec.seed, _SAMPLING_STREAM, number), spec.shuffle)
        positions.append(every[chosen])
        parts += loaded
    return Rows(parts, np.concatenate(positions))


def _load_source(
    source: FileSource | HubSource | ReasoningGymSource, field: str, cache_dir: Path, detect: Detect, open_file: OpenFile
) -> list[Part]:
    if isinstance(source, FileSource):
        files = list_files(source.path, f"{field}.path")
        named = [(str(file), open_file(file, cache_dir)) for file in files]
    elif isinstance(source, HubSource):
        named = _load_hub(source, field, cache_dir)
    else:
        named = [(f"reasoning_gym:{source.task}", generate_puzzles(source, field))]
    return [_build_part(name, _rename(dataset, source.columns, field, name), detect) for name, dataset in named]


def _load_hub(source: HubSource, field: str, cache_dir: Path) -> list[tuple[str, "Dataset"]]:
    import datasets
    from datasets.exceptions import DatasetsError

    found = []
    for subset in source.subset.split("/") if source.subset else [None]:
        name = f"{source.id}:{subset}" if subset else source.id
        try:
            with quiet_datasets():
                dataset = datasets.load_dataset(source.id, subset, split=source.split, cache_dir=str(cache_dir))
        except (DatasetsError, OSError, ValueError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise DataError(f"{field}.id: cannot load {name}, split {source.split}: {reason}") from None
        found.append((f"{name}[{source.split}]", dataset))
    return found


def _rename(dataset: "Dataset", columns: dict[str, str], field: str, name: str) -> "Dataset":
    missing = [old for old in columns if old not in dataset.column_names]
    if missing:
        found = ", ".join(dataset.column_names)
        raise DataError(f"{field}.columns: {name} has no column {', '.join(missing)}; it has {found}")
    try:
        return dataset.rename_columns(columns) if columns else dataset
    except ValueError as error:
        raise DataError(f"{field}.columns: {error}") from None


def _build_part(name: str, dataset: "Dataset", detect: Detect) -> Part:
    if not len(dataset):
        raise DataError(f"{name}: has no rows")
    try:
        return Part(name, dataset, detect(dataset.column_names))
    except DataError as error:
        raise DataError(f"{name}, row 1: {error}") from None


def _list_positions(parts: list[Part], first_part: int) -> np.ndarray:
    pieces = []
    for offset, part in enumerate(parts):
        rows = np.arange(len(part.dataset), dtype=np.int64)
        pieces.append(np.stack([np.full_like(rows, first_part + offset), rows], axis=1))
    return np.concatenate(pieces)


def _sample(num_rows: int, sample: int | None, seed: tuple[int, ...], shuffle: bool) -> np.ndarray:
    """Indices of the sampled rows: whole repeats of all rows, then a remainder without replacement."""
    if sample is None:
        return np.arange(num_rows)
    repeats, remainder = divmod(sample, num_rows)
    order = np.random.default_rng(seed).permutation(num_rows) if shuffle else np.arange(num_rows)
    return np.concatenate([np.tile(np.arange(num_rows), repeats), order[:remainder]])
