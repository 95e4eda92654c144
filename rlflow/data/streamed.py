"""Tokenised conversations of a stream, written window by window while the job trains."""

import json
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlflow.data.arrow_file import fingerprint
from rlflow.data.stream import RowStream
from rlflow.data.tokenized import CONVERSATION_SETTINGS, ConversationSet, write_conversations
from rlflow.data.windows import Windows, window_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlflow.spec.data import DataSpec

_DECIDES_ORDER = {"sources", "mix", "seed", "shuffle", "held_out", "streaming"}


class StreamedConversations(Windows):
    """The windows of a stream as a job's driver has them: a set of conversations, and the order in which they are visited.

    The next window is read and tokenised by a thread. Beside each window stands where in the sources it began, so that a run
    goes on from any row; windows before the rows that were asked for last are removed.
    """

    def __init__(self, stream: RowStream, tokenizer: "PreTrainedTokenizerBase", spec: "DataSpec", cache_dir: str | Path) -> None:
        """The stream's folder under `cache_dir`; the first window is written at once. Raises `DataError`."""
        settings = json.loads(spec.model_dump_json(include={*CONVERSATION_SETTINGS, *_DECIDES_ORDER}))
        super().__init__(Path(cache_dir) / f"stream-{fingerprint('', tokenizer, settings)}")
        self._stream, self._tokenizer, self._spec = stream, tokenizer, spec
        self._at: int | None = None  # the row that the stream would give next
        self._ahead: tuple[int, Future[int]] | None = None
        self._thread = ThreadPoolExecutor(1, "stream")
        self.lengths = _Column(self, "lengths")
        self.loss_weight_sums = _Column(self, "loss_weight_sums")
        if not self._marks():
            self.path.mkdir(parents=True, exist_ok=True)
            self._mark(0, 0, stream.beginning, passes=0)
            self._write(0)

    def rows(self, start: int, count: int) -> list[int]:
        """The rows at cursor positions `start` to `start + count - 1`, which are their numbers; they are there afterwards.

        Raises:
            DataError: one that had not been read yet is malformed.
        """
        end = self._mark_before(start)
        while end < start + count:
            end = self._ready(end)
        if self._ahead is None:
            self._ahead = (end, self._thread.submit(self._write, end))
        self._remove_before(self._mark_before(start))
        return list(range(start, start + count))

    def epoch(self, cursor: int) -> float:
        """Whole passes over every source before the window that holds the cursor's row."""
        return float(self._read_mark(self._mark_before(cursor))["passes"])

    def _ready(self, start: int) -> int:
        """Have the window that begins at a row; the row after its last."""
        if self._ahead is not None:
            (ahead, written), self._ahead = self._ahead, None
            end = written.result()  # first of all: the thread must have left the stream
            if ahead == start:
                return end
        if window_file(self.path, start).exists():
            end = start + len(ConversationSet(window_file(self.path, start)))
            if end in self._marks():
                return end
        return self._write(start)

    def _write(self, start: int) -> int:
        mark = self._read_mark(start)
        if self._at != start:
            self._stream.restore(mark["state"])
        self._at = None  # an error leaves the stream somewhere else
        rows = self._stream.read(mark["window"])
        end = start + len(write_conversations(window_file(self.path, start), rows, self._tokenizer, self._spec))
        self._mark(end, mark["window"] + 1, self._stream.state(), self._stream.passes)
        self._at = end
        return end

    def _remove_before(self, start: int) -> None:
        for file in self.path.glob("*.arrow"):
            if int(file.stem) < start:
                file.unlink()

    def _mark_before(self, row: int) -> int:
        """Where the last known window before a row begins, or that of the row itself."""
        return max(mark for mark in self._marks() if mark <= row)

    def _marks(self) -> list[int]:
        return [int(file.stem) for file in self.path.glob("*.json")]

    def _read_mark(self, start: int) -> dict[str, Any]:
        return json.loads(window_file(self.path, start).with_suffix(".json").read_text())

    def _mark(self, start: int, window: int, state: Sequence[dict[str, Any]], passes: int) -> None:
        """Note where a window begins."""
        path = window_file(self.path, start).with_suffix(".json")
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")
        unfinished.write_text(json.dumps({"window": window, "passes": passes, "state": state}))
        unfinished.rename(path)


class _Column(Sequence):
    """A value of every row of the stream, for those that have been asked for."""

    def __init__(self, windows: Windows, name: str) -> None:
        self._windows, self._name = windows, name

    def __getitem__(self, row: int) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        window = self._windows.find(row)
        return getattr(window, self._name)[row - window.start]

    def __len__(self) -> int:
        raise TypeError("a stream has no length")
