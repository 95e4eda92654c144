"""The reference's log-probabilities of all rows, computed once and kept beside the tokenised data."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor

from rlflow.data.arrow_file import map_arrow, write_arrow

_SCHEMA = pa.schema({"logprobs": pa.list_(pa.float32())})


class StoredLogprobs:
    """A memory-mapped file of log-probabilities by row."""

    def __init__(self, path: Path) -> None:
        self._table, _ = map_arrow(path)

    def __getitem__(self, row: int) -> Tensor:
        """Of the trained tokens, float32 [n]."""
        return torch.from_numpy(self._table["logprobs"][row].values.to_numpy().copy())


def store_logprobs(path: Path, passes: Iterable[Mapping[int, Tensor]]) -> None:
    """Gather each pass's log-probabilities by row from all ranks, and write them on the first rank (collective).

    The rows of all passes are 0, 1, ... without gaps.
    """
    found: dict[int, Tensor] = {}
    for scores in passes:
        parts: list[Mapping[int, Tensor] | None] = [scores]
        if dist.get_world_size() > 1:
            parts = [None] * dist.get_world_size()
            dist.all_gather_object(parts, dict(scores))
        if dist.get_rank() == 0:
            found.update((row, logprobs) for part in parts if part is not None for row, logprobs in part.items())
    if dist.get_rank() == 0:
        column = pa.array([found[row].numpy() for row in range(len(found))], _SCHEMA.field(0).type)
        write_arrow(path, _SCHEMA, [pa.record_batch([column], schema=_SCHEMA)], len(found))
