"""Local files as data sets, with errors that name the file and the row."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlflow.errors import DataError
from rlflow.spec.sources import FILE_SUFFIXES

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}


def list_files(path: str, field: str) -> list[Path]:
    """The file, or the data files of the directory, sorted; `field` names the spec field in errors."""
    location = Path(path).expanduser()
    if location.is_dir():
        files = sorted(file for file in location.iterdir() if file.suffix in FILE_SUFFIXES)
        if not files:
            raise DataError(f"{field}: the directory {path} holds no {', '.join(FILE_SUFFIXES)} file")
        return [file for file in files if file.suffix != ".txt"] or files  # a note beside the rows holds none
    if not location.is_file():
        raise DataError(f"{field}: there is no file {path} (looked for {location.absolute()})")
    if location.suffix not in FILE_SUFFIXES:
        raise DataError(f"{field}: {path} does not end in {', '.join(FILE_SUFFIXES)}")
    return [location]


def load_file(file: Path, cache_dir: Path) -> "Dataset":
    """The rows of a file, memory-mapped from an Arrow copy under `cache_dir`; an earlier one is used again for the same path,
    size and time of change.

    Raises:
        DataError: the file cannot be read; names the row where that is known.
    """
    return _open_file(file, cache_dir=str(cache_dir / f"files-{file.stat().st_size}"))  # datasets itself knows path and time


def stream_file(file: Path) -> "IterableDataset":
    """The rows of a file, read as they are asked for. Raises `DataError` if its beginning cannot be read."""
    return _open_file(file, streaming=True)


def _open_file(file: Path, **how: Any) -> Any:
    import datasets
    from datasets.exceptions import DatasetsError

    builder = _BUILDERS[file.suffix]
    # Empty cells stay empty strings instead of becoming NaN.
    options: dict[str, Any] = {"keep_default_na": False} if builder == "csv" else {}
    if not file.stat().st_size:
        raise DataError(f"{file}: the file is empty")
    try:
        with quiet_datasets():
            # Not load_dataset, which asks a server on the internet to count this.
            rows = getattr(datasets.Dataset, f"from_{builder}")(str(file), split="train", **how, **options)
            return rows.filter(_is_not_blank) if builder == "text" else rows
    except (DatasetsError, ValueError, OSError, StopIteration) as error:
        if builder == "json":
            check_json(file)
        if isinstance(error, StopIteration) or "corresponds to no data" in str(error):
            raise DataError(f"{file}: has no rows") from None
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise DataError(f"{file}: cannot be read as {builder}: {reason}") from None


def _is_not_blank(row: dict[str, str]) -> bool:
    return bool(row["text"].strip())


def check_json(file: Path) -> None:
    """Raise the `DataError` of the first row that is no JSON object, if there is one."""
    text = file.read_text(encoding="utf-8", errors="replace")
    if text.lstrip().startswith("[") and file.suffix == ".json":
        rows = _parse(text, str(file))
        origins = [f"{file}, row {number}" for number in range(1, len(rows) + 1)]
    else:
        lines = [line for line in text.split("\n") if line.strip()]
        origins = [f"{file}, row {number}" for number in range(1, len(lines) + 1)]
        rows = (_parse(line, origin) for line, origin in zip(lines, origins, strict=True))
    for row, origin in zip(rows, origins, strict=True):
        if not isinstance(row, dict):
            raise DataError(f"{origin}: is {type(row).__name__}, expected a JSON object")


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """No progress bars and no log lines of `datasets`; its errors are raised, so nothing is lost."""
    import datasets
    from datasets.utils import logging

    verbosity, bars_off = logging.get_verbosity(), datasets.are_progress_bars_disabled()
    logging.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if not bars_off:
            datasets.enable_progress_bars()


def _parse(text: str, origin: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{origin}: not valid JSON: {error}") from None
