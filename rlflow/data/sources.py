"""Sources of a spec -> rows: loading, renaming, format detection, sampling and mixing."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlflow.data.files import list_files, load_file, quiet_datasets
from rlflow.data.formats import detect_format
from rlflow.data.hugging_face_hub import retried
from rlflow.data.modelscope_hub import load_modelscope_dataset
from rlflow.data.puzzles import generate_puzzles
from rlflow.data.rows import Format, Part, Rows
from rlflow.data.self_cognition import BUILT_IN, fill_placeholders
from rlflow.errors import DataError
from rlflow.spec.data import DataSpec, MixSpec
from rlflow.spec.sources import FileSource, Hub, HubSource, ReasoningGymSource, SelfCognitionSource, SourceSpec

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
        loaded = load_source(source, number, spec, Path(cache_dir), detect, open_file)
        every = _list_positions(loaded, first_part=len(parts))
        seed = (spec.seed, _SAMPLING_STREAM, number)
        chosen = _sample(len(every), source.sample, seed, spec.shuffle)
        if spec.mix is not None and spec.shuffle:  # a source that is not read to its end shows rows from all over it
            chosen = np.random.default_rng((*seed, 1)).permutation(chosen)
        positions.append(every[chosen])
        parts += loaded
    mixed = np.concatenate(positions)
    order = slice(None) if spec.mix is None else _interleave([len(each) for each in positions], spec.mix, spec.seed)
    return Rows(parts, mixed[order])


def load_source(
    source: SourceSpec, number: int, spec: DataSpec, cache_dir: Path, detect: Detect, open_file: OpenFile = load_file
) -> list[Part]:
    """The files or subsets of one source. Raises `DataError`, as `load_sources`."""
    field = f"data.sources[{number}]"
    if isinstance(source, FileSource):
        named = _load_files(source.path, field, cache_dir, open_file)
    elif isinstance(source, HubSource):
        named = _load_hub(source.id, list_subsets(source, field), source.split, source.hub, field, cache_dir)
    elif isinstance(source, SelfCognitionSource):
        loaded = [(name, _rename(dataset, source.columns, field, name)) for name, dataset in _load_self(source, field, cache_dir)]
        named = [(name, fill_placeholders(dataset, source, spec, name)) for name, dataset in loaded]
        return [_build_part(name, dataset, detect, number) for name, dataset in named]
    else:
        assert isinstance(source, ReasoningGymSource), "the job finds the files of an earlier run"
        named = [(f"reasoning_gym:{source.task}", generate_puzzles(source, field))]
    return [_build_part(name, _rename(dataset, source.columns, field, name), detect, number) for name, dataset in named]


def _interleave(lengths: Sequence[int], mix: MixSpec, seed: int) -> np.ndarray:
    """Indices into the sources' rows, laid end to end, in the order in which they are drawn."""
    from datasets import Dataset, interleave_datasets

    ends = np.cumsum(lengths)
    sources = [Dataset.from_dict({"row": np.arange(end - length, end)}) for length, end in zip(lengths, ends, strict=True)]
    probabilities = [weight / sum(mix.weights) for weight in mix.weights]
    drawn = interleave_datasets(sources, probabilities=probabilities, seed=seed, stopping_strategy=mix.stop)
    return np.asarray(drawn["row"], dtype=np.int64)


def _load_self(source: SelfCognitionSource, field: str, cache_dir: Path) -> list[tuple[str, "Dataset"]]:
    if source.path is not None:
        return _load_files(source.path, field, cache_dir, load_file)
    if source.id is not None:
        return _load_hub(source.id, [None], "train", source.hub, field, cache_dir)
    return [("self_cognition", load_file(BUILT_IN, cache_dir))]


def _load_files(path: str, field: str, cache_dir: Path, open_file: OpenFile) -> list[tuple[str, "Dataset"]]:
    return [(str(file), open_file(file, cache_dir)) for file in list_files(path, f"{field}.path")]


def list_subsets(source: HubSource, field: str) -> Sequence[str | None]:
    """The subsets to read one after the other; `all` are those of the data set, if none has this name."""
    if source.subset != "all":
        return source.subset.split("/") if source.subset else [None]
    from datasets import get_dataset_config_names

    try:
        names = retried(lambda: get_dataset_config_names(source.id))
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{field}.subset: cannot list the subsets of {source.id}: {reason}") from None
    return ["all"] if "all" in names else names


def _load_hub(
    name: str, subsets: Sequence[str | None], split: str, hub: Hub, field: str, cache_dir: Path
) -> list[tuple[str, "Dataset"]]:
    load = load_modelscope_dataset if hub == "modelscope" else load_hugging_face_dataset
    return [(split_name(name, subset, split), load(name, subset, split, cache_dir, field)) for subset in subsets]


def split_name(name: str, subset: str | None, split: str) -> str:
    """How messages name a split of a data set."""
    return f"{name}{f':{subset}' if subset else ''}[{split}]"


def load_hugging_face_dataset(
    name: str, subset: str | None, split: str, cache_dir: Path, field: str, *, streaming: bool = False
) -> Any:
    """A split of a data set, or a stream of its rows. Raises `DataError` naming the source's `field`."""
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        with quiet_datasets():
            options = {"split": split, "cache_dir": str(cache_dir), "streaming": streaming}
            return retried(partial(datasets.load_dataset, name, subset, **options))
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        shown = f"{name}:{subset}" if subset else name
        raise DataError(f"{field}.id: cannot load {shown}, split {split}: {reason}") from None


def _rename(dataset: "Dataset", columns: dict[str, str], field: str, name: str) -> "Dataset":
    check_columns(dataset.column_names, columns, field, name)
    return dataset.rename_columns(columns) if columns else dataset


def check_columns(found: Sequence[str], renamed: dict[str, str], field: str, name: str) -> None:
    """Raises `DataError` if columns to rename are missing, or two would have one name."""
    missing = [old for old in renamed if old not in found]
    if missing:
        raise DataError(f"{field}.columns: {name} has no column {', '.join(missing)}; it has {', '.join(found)}")
    names = [renamed.get(column, column) for column in found]
    twice = sorted({column for column in names if names.count(column) > 1})
    if twice:
        raise DataError(f"{field}.columns: {name} would have two columns {', '.join(twice)}; rename or leave one")


def _build_part(name: str, dataset: "Dataset", detect: Detect, source: int) -> Part:
    if not len(dataset):
        raise DataError(f"{name}: has no rows")
    return Part(name, dataset, detect_part(name, dataset.column_names, detect), source)


def detect_part(name: str, columns: Sequence[str], detect: Detect) -> Format:
    """How rows with these columns are read. Raises `DataError`."""
    try:
        return detect(columns)
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
