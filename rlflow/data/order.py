"""The order in which a job visits its rows."""

from typing import Protocol

import numpy as np


class VisitOrder(Protocol):
    """An endless order over rows, addressed by a cursor that only grows."""

    def rows(self, start: int, count: int) -> list[int]:
        """The row indices at cursor positions `start` to `start + count - 1`."""
        ...

    def epoch(self, cursor: int) -> float:
        """Epochs completed at a cursor."""
        ...


class RowOrder:
    """An endless order over rows, addressed by a cursor that only grows: resuming needs only the cursor.

    Epoch `cursor // num_rows` is a permutation seeded by (seed, epoch), or the plain order without shuffling.
    """

    def __init__(self, num_rows: int, seed: int, shuffle: bool) -> None:
        assert num_rows > 0, "an order over no rows"
        self.num_rows = num_rows
        self.seed = seed
        self.shuffle = shuffle
        self._cached: tuple[int, np.ndarray] | None = None

    def rows(self, start: int, count: int) -> list[int]:
        """The row indices at cursor positions `start` to `start + count - 1`."""
        found: list[int] = []
        while len(found) < count:
            epoch, offset = divmod(start + len(found), self.num_rows)
            found += self._permute(epoch)[offset : offset + count - len(found)].tolist()
        return found

    def epoch(self, cursor: int) -> float:
        """Epochs completed at a cursor, with their fraction."""
        return cursor / self.num_rows

    def _permute(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.num_rows)
        if self._cached is None or self._cached[0] != epoch:
            self._cached = (epoch, np.random.default_rng((self.seed, epoch)).permutation(self.num_rows))
        return self._cached[1]
