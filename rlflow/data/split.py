"""The held-out split."""

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
    count = _count_held_out(spec.held_out, len(distinct))
    chosen = np.random.default_rng((spec.seed, _SPLIT_STREAM)).permutation(len(distinct))[:count]
    is_held_out = np.isin(identity.reshape(-1), chosen)
    return rows.take(np.flatnonzero(~is_held_out)), Rows(rows.parts, distinct[chosen])


def _count_held_out(held_out: int | float, num_rows: int) -> int:
    if isinstance(held_out, float) and held_out > 0:
        count = max(int(num_rows * held_out), 1)
    else:
        count = int(held_out)
    if count >= num_rows:
        raise DataError(f"data.held_out: {held_out} leaves nothing to train on; there are {num_rows} distinct rows")
    return count
