"""Windows of a stream of tokenised conversations: files whose names say which row of the stream they begin with."""

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from rlflow.data.tokenized import ConversationSet
from rlflow.errors import DataError

_VISIBLE_S = 60.0
"""Within this time a new file is listed on every node of a shared file system."""
_MOST_OPEN = 4


@dataclass
class Window:
    """A file of conversations; its first one has the number `start` in the stream."""

    start: int
    conversations: ConversationSet

    def __contains__(self, row: int) -> bool:
        return self.start <= row < self.end

    @cached_property
    def end(self) -> int:
        """The row after its last."""
        return self.start + len(self.conversations)

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of every conversation."""
        return self.conversations.lengths

    @cached_property
    def loss_weight_sums(self) -> list[float]:
        """Sum of the loss weights of every conversation."""
        return self.conversations.loss_weight_sums


class Windows:
    """The windows in a folder, read as one set whose rows are numbered through the stream; the path is enough to open it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._open: list[Window] = []

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and loss weights, as those of a `ConversationSet`."""
        window = self.find(row)
        return window.conversations[row - window.start]

    def label(self, row: int) -> float:
        """As that of a `ConversationSet`."""
        window = self.find(row)
        return window.conversations.label(row - window.start)

    def find(self, row: int) -> Window:
        """The window that holds a row, which must have been written. Raises `DataError` if it cannot be seen here."""
        for window in self._open:
            if row in window:
                return window
        deadline = time.monotonic() + _VISIBLE_S
        while (window := self._look_for(row)) is None:
            if time.monotonic() > deadline:
                raise DataError(f"{self.path}: holds no window with row {row} of the stream; is it visible on every node?")
            time.sleep(0.2)
        self._open = [*self._open[1 - _MOST_OPEN :], window]
        return window

    def _look_for(self, row: int) -> Window | None:
        starts = [int(file.stem) for file in self.path.glob("*.arrow")]
        start = max((start for start in starts if start <= row), default=None)
        if start is None:
            return None
        window = Window(start, ConversationSet(window_file(self.path, start)))
        return window if row in window else None


def window_file(folder: Path, start: int) -> Path:
    """The file of the window that begins with a row."""
    return folder / f"{start:012d}.arrow"
