"""How named tensors are laid out in buckets, so that each bucket moves as one piece of memory."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

ALIGNMENT_BYTES = 512
"""Start of each tensor in its bucket."""


@dataclass(frozen=True, slots=True)
class TensorSlot:
    """A tensor's place in a bucket."""

    name: str
    """Name in the model's checkpoint."""
    dtype: str
    """torch dtype without the prefix, e.g. `bfloat16`."""
    shape: tuple[int, ...]
    offset: int
    """First byte in the bucket."""
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Bucket:
    """Tensors that move together."""

    slots: tuple[TensorSlot, ...]

    @property
    def num_bytes(self) -> int:
        """Size of the bucket's memory."""
        return self.slots[-1].offset + self.slots[-1].num_bytes


@dataclass(frozen=True, slots=True)
class TensorDescription:
    """A tensor that will be sent."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    item_bytes: int

    @property
    def num_bytes(self) -> int:
        """Size without padding."""
        return math.prod(self.shape) * self.item_bytes


def plan_buckets(tensors: Iterable[TensorDescription], bucket_bytes: int) -> tuple[Bucket, ...]:
    """Fill buckets of at most `bucket_bytes` in order; a larger tensor gets a bucket of its own."""
    buckets: list[Bucket] = []
    slots: list[TensorSlot] = []
    end = 0
    for tensor in tensors:
        start = -(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        if slots and start + tensor.num_bytes > bucket_bytes:
            buckets.append(Bucket(tuple(slots)))
            slots, start = [], 0
        slots.append(TensorSlot(tensor.name, tensor.dtype, tensor.shape, start, tensor.num_bytes))
        end = start + tensor.num_bytes
    return (*buckets, Bucket(tuple(slots))) if slots else tuple(buckets)
