"""Tokenised conversations of a stream, written window by window while the job trains."""

import json
import os
import shutil
import threading
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlflow.data.arrow_file import fingerprint
from rlflow.data.stream import RowStream
from rlflow.data.tokenized import CONVERSATION_SETTINGS, write_conversations
from rlflow.data.windows import Windows, window_file
from rlflow.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlflow.spec.data import DataSpec

_DECIDES_ROWS = {"sources", "model_name", "model_author", "mix", "seed", "shuffle", "held_out", "streaming"}


class StreamedConversations(Windows):
    """The windows of a stream as a job's driver has them: a set of conversations, and the order in which they are visited.

    The next window is read and tokenised by a thread. Beside each window stands where in the sources it began, so that a run
    goes on from any row; windows before the rows that were asked for last are removed.
    """

    def __init__(self, stream: RowStream, tokenizer: "PreTrainedTokenizerBase", spec: "DataSpec", cache_dir: str | Path) -> None:
        """The stream's folder under `cache_dir`; the first window is written at once. Raises `DataError`."""
        settings = json.loads(spec.model_dump_json(include={*CONVERSATION_SETTINGS, *_DECIDES_ROWS}))
        super().__init__(Path(cache_dir) / f"stream-{fingerprint('', tokenizer, settings)}")
        self._stream, self._tokenizer, self._spec = stream, tokenizer, spec
        self._at: int | None = None  # the row that the stream would give next
        self._ahead: tuple[int, Future[int]] | None = None
        self.lengths = _Column(self, "lengths")
        self.loss_weight_sums = _Column(self, "loss_weight_sums")
        self.path.mkdir(parents=True, exist_ok=True)
        for unfinished in self.path.glob("*.tmp"):
            unfinished.unlink()
        self._starts = sorted(int(file.stem) for file in self.path.glob("*.json"))
        if not self._starts:
            self._mark(0, 0, stream.beginning, passes=0)
        if len(self._starts) == 1:
            self._write(0)

    def rows(self, start: int, count: int) -> list[int]:
        """The rows at cursor positions `start` to `start + count - 1`, which are their numbers; they are there afterwards.

        Raises:
            DataError: one that had not been read yet is malformed.
        """
        end = self._start_before(start)
        while end < start + count:
            end = self._ready(end)
        self._read_ahead(end)
        self._remove_before(self._start_before(start))
        return list(range(start, start + count))

    def epoch(self, cursor: int) -> float:
        """Whole passes over every source before the window that holds the cursor's row."""
        return float(self._read_mark(self._start_before(cursor))["passes"])

    def _ready(self, start: int) -> int:
        """Have the window that begins at a row; the row after its last."""
        if self._ahead is not None and self._ahead[0] == start:
            (_, written), self._ahead = self._ahead, None
            return written.result()
        end = self._end_of(start)
        if end is not None:
            return end
        self._leave_the_stream()
        return self._write(start)

    def _read_ahead(self, start: int) -> None:
        if self._end_of(start) is not None or (self._ahead is not None and self._ahead[0] == start):
            return
        self._leave_the_stream()
        written: Future[int] = Future()

        def write() -> None:
            try:
                written.set_result(self._write(start))
            except BaseException as error:
                written.set_exception(error)

        self._ahead = (start, written)
        threading.Thread(target=write, name="stream", daemon=True).start()  # a source that hangs must not keep the process

    def _leave_the_stream(self) -> None:
        """Wait for the thread; what it found wrong matters only if its window is asked for, and is then found again."""
        if self._ahead is not None:
            wait([self._ahead[1]])
            self._ahead = None

    def _write(self, start: int) -> int:
        """Write the window that begins at a row, and where the next one does: the row after its last."""
        mark, file = self._read_mark(start), window_file(self.path, start)
        if self._at != start:
            self._stream.restore(mark["state"])
        self._at = None  # an error leaves the stream somewhere else
        passes, window, kept = self._stream.most_passes, mark["window"], 0
        while not kept:  # a window without a row would have no place
            file.unlink(missing_ok=True)
            rows = self._stream.read(window)
            kept, window = len(write_conversations(file, rows, self._tokenizer, self._spec)), window + 1
            if not kept and self._stream.most_passes > passes + 1:
                raise DataError(
                    f"data.max_tokens: no row of {self._stream.name} is within {self._spec.max_tokens} tokens; raise it"
                )
        self._at = start + kept
        self._mark(self._at, window, self._stream.state(), self._stream.passes)
        return self._at

    def _remove_before(self, start: int) -> None:
        for known in self._starts:
            if known < start:
                window_file(self.path, known).unlink(missing_ok=True)

    def _start_before(self, row: int) -> int:
        """Where the last known window before a row begins, or that of the row itself."""
        return self._starts[bisect_right(self._starts, row) - 1]

    def _end_of(self, start: int) -> int | None:
        """The row after the last of a window that is there."""
        after = bisect_right(self._starts, start)
        return self._starts[after] if after < len(self._starts) and window_file(self.path, start).exists() else None

    def _read_mark(self, start: int) -> dict[str, Any]:
        return json.loads(window_file(self.path, start).with_suffix(".json").read_text())

    def _mark(self, start: int, window: int, state: Sequence[dict[str, Any]], passes: int) -> None:
        """Note where a window begins."""
        path = window_file(self.path, start).with_suffix(".json")
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")
        unfinished.write_text(json.dumps({"window": window, "passes": passes, "state": state}))
        unfinished.rename(path)
        self._starts = sorted({*self._starts, start})


def forget_windows(cache_dir: str | Path) -> None:
    """Remove what earlier starts have read of streams: the sources may have changed before anything was trained on them."""
    for folder in Path(cache_dir).glob("stream-*"):
        shutil.rmtree(folder)


class _Column(Sequence):
    """A value of every row of the stream, for those that have been asked for."""

    def __init__(self, windows: Windows, name: str) -> None:
        self._windows, self._name = windows, name

    def __getitem__(self, row: int) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        window = self._windows.find(row)
        return getattr(window, self._name)[row - window.start]

    def __len__(self) -> int:
        raise TypeError("a stream has no length")
