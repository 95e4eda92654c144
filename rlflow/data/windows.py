"""Windows of a stream of tokenised conversations: files whose names say which row of the stream they begin with."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from rlflow.data.tokenized import ConversationSet


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
        """The window that holds a row, which must have been written."""
        for window in self._open:
            if row in window:
                return window
        starts = sorted(int(file.stem) for file in self.path.glob("*.arrow"))
        known = {window.start: window for window in self._open}
        self._open = [known.get(start) or Window(start, ConversationSet(window_file(self.path, start))) for start in starts]
        return next(window for window in self._open if row in window)


def window_file(folder: Path, start: int) -> Path:
    """The file of the window that begins with a row."""
    return folder / f"{start:012d}.arrow"
