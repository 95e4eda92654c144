"""The held-out split."""

from typing import Literal

import numpy as np

from rlflow.data.rows import Rows
from rlflow.errors import DataError
from rlflow.spec.data import DataSpec

_SPLIT_STREAM = 2


def split_held_out(rows: Rows, spec: DataSpec) -> tuple[Rows, Rows]:
    """Training rows and held-out rows; the same split for the same rows and seed.

    A row that sampling repeated is held out once, and every repeat of it leaves the training rows.

    Raises:
        DataError: fewer rows than `data.held_out` asks for, or none left to train on.
    """
    distinct, identity = np.unique(rows.positions, axis=0, return_inverse=True)
    source = np.array([part.source for part in rows.parts], dtype=np.int64)[distinct[:, 0]]
    shared = [number for number, each in enumerate(spec.sources) if each.held_out is None]
    chosen = [_choose(np.flatnonzero(np.isin(source, shared)), spec.held_out, "data", (spec.seed, _SPLIT_STREAM))]
    for number, each in enumerate(spec.sources):
        if each.held_out is not None:
            own = np.flatnonzero(source == number)
            chosen.append(_choose(own, each.held_out, f"data.sources[{number}]", (spec.seed, _SPLIT_STREAM, number + 1)))
    held_out = np.concatenate(chosen)
    if len(held_out) == len(distinct):
        raise DataError("data.held_out: no row is left to train on")
    is_held_out = np.isin(identity.reshape(-1), held_out)
    return rows.take(np.flatnonzero(~is_held_out)), Rows(rows.parts, distinct[held_out])


def _choose(rows: np.ndarray, held_out: int | float | Literal["all"], owner: str, seed: tuple[int, ...]) -> np.ndarray:
    """Those of `rows`, all distinct, that are held out."""
    count = len(rows) if held_out == "all" else _count(held_out, len(rows))
    if held_out not in (0, "all") and count >= len(rows):
        raise DataError(f"{owner}.held_out: {held_out} leaves nothing to train on; there are {len(rows)} distinct rows")
    return rows[np.random.default_rng(seed).permutation(len(rows))[:count]]


def _count(held_out: int | float, num_rows: int) -> int:
    return max(int(num_rows * held_out), 1) if isinstance(held_out, float) and held_out > 0 else int(held_out)
