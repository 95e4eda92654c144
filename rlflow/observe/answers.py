"""Answers of batch inference: two files of JSON lines that only grow, and that a killed run goes on with.

A row is done when all its samples are recorded, as an answer or as a reason why there is none. What a kill left half written
(a torn line, some samples of a row) is taken out when the files are opened again.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from rlflow.observe.durable import json_line, sync_directory

_SYNC_EVERY = 256
"""Rows between two flushes to the disk."""


class AnswerFiles:
    """Appends rows as they are done. Every record has a `row_id`; `sample` tells the records of one row apart."""

    def __init__(self, output: Path, samples_per_row: int) -> None:
        """`samples_per_row`: records that make a row done, unless one has no `sample`: that stands for the whole row."""
        self.output, self.errors = output, errors_path(output)
        self._samples = samples_per_row
        self.totals: Counter[str] = Counter()
        """`answers`, `dropped`, `failed`, `prompt_tokens` and `completion_tokens` of the two files; a prompt counts once, however
        many samples it has.
        """
        output.parent.mkdir(parents=True, exist_ok=True)
        self.done = self._repair()
        self._files: list[BinaryIO] = [path.open("ab") for path in (self.errors, output)]
        self._unsynced = 0
        sync_directory(output.parent)

    def write(self, answers: Sequence[Mapping[str, Any]], errors: Sequence[Mapping[str, Any]]) -> None:
        """Record what became of one row."""
        for file, records in zip(self._files, (errors, answers), strict=True):
            if records:
                file.write("".join(json_line(dict(record)) for record in records).encode("utf-8", "backslashreplace"))
                file.flush()
                self._count(records)
        self.done.add((answers or errors)[0]["row_id"])
        self._unsynced += 1
        if self._unsynced >= _SYNC_EVERY:
            self.sync()

    def sync(self) -> None:
        """Flush to the disk."""
        for file in self._files:
            os.fsync(file.fileno())
        self._unsynced = 0

    def close(self) -> None:
        """Flush and close; a file of errors without errors goes."""
        self.sync()
        for file in self._files:
            file.close()
        if not self.errors.stat().st_size:
            self.errors.unlink()

    def _repair(self) -> set[str]:
        """Rows that are done; the records of all others are taken out of the files."""
        paths = (self.errors, self.output)
        recorded: dict[str, set[int | None]] = {}
        for path in paths:
            for _, record in _records(path):
                if record is not None:
                    recorded.setdefault(record["row_id"], set()).add(record.get("sample"))
        done = {row for row, samples in recorded.items() if None in samples or len(samples) >= self._samples}
        for path in paths:
            self._keep(path, done)
        return done

    def _keep(self, path: Path, done: set[str]) -> None:
        """Keep the records of rows that are done, each once."""
        kept, seen, is_whole = [], set(), True
        for line, record in _records(path):
            key = None if record is None else (record["row_id"], record.get("sample"))
            if key is None or key[0] not in done or key in seen:
                is_whole = False
                continue
            seen.add(key)
            kept.append(line)
            self._count([record])
        if is_whole:
            return
        beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with beside.open("wb") as file:
            file.writelines(kept)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)

    def _count(self, records: Sequence[Mapping[str, Any] | None]) -> None:
        for record in records:
            assert record is not None
            kind = "answers" if "messages" in record else "dropped" if record.get("dropped") else "failed"
            self.totals[kind] += 1
            self.totals["completion_tokens"] += record.get("completion_tokens", 0)
            if self._samples == 1 or not record.get("sample"):  # the first of a row, or the only one
                self.totals["prompt_tokens"] += record.get("prompt_tokens", 0)


def errors_path(output: Path) -> Path:
    """The file of rows without an answer that belongs to a file of answers."""
    return output.with_name(f"{output.name.removesuffix('.jsonl')}.errors.jsonl")


def _records(path: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Lines, and what they hold; None for one that is torn."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                record = None
            yield line, record if isinstance(record, dict) and "row_id" in record else None
