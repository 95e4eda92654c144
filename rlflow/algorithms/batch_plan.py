"""Which rank computes which sequences, in which micro-batches: a pure function of lengths."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Sequences that go through the model together."""

    sequences: tuple[int, ...]
    """Indices into the batch."""
    is_padding: bool = False
    """Only there so that every rank runs the same number of micro-batches; its loss counts zero times."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One optimiser step."""

    ranks: tuple[tuple[MicroBatch, ...], ...]
    """Micro-batches of each rank; equally many on every rank."""
    token_weights: dict[int, float]
    """Weight of every trained token of a sequence in the loss of the step."""


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """What the learner group does with a batch. Built by the controller, carried out by the ranks."""

    steps: tuple[StepPlan, ...]
    """Optimiser steps in order."""


def plan_step(
    sequences: Sequence[int],
    lengths: Sequence[int],
    token_weights: dict[int, float],
    *,
    num_ranks: int,
    micro_batch_tokens: int,
    packing: bool,
) -> StepPlan:
    """Distribute `sequences` (indices into `lengths`, in tokens) over ranks and micro-batches.

    Ranks get equal token counts as far as whole sequences allow. A micro-batch holds at most `micro_batch_tokens` (padding
    included if not `packing`), except that a longer sequence goes alone.
    """
    assert sequences, "an optimiser step needs at least one sequence"
    shards = _balanced(sequences, lengths, num_ranks)
    bins = [_bins(shard, lengths, micro_batch_tokens, packing) for shard in shards]
    count = max(len(rank_bins) for rank_bins in bins)
    padding = MicroBatch((min(sequences, key=lambda i: (lengths[i], i)),), is_padding=True)
    ranks = tuple(
        tuple(MicroBatch(tuple(members)) for members in rank_bins) + (padding,) * (count - len(rank_bins)) for rank_bins in bins
    )
    return StepPlan(ranks, token_weights)


def _balanced(sequences: Sequence[int], lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Longest first, each to the part with the fewest tokens so far."""
    heap = [(0, part) for part in range(parts)]
    shards: list[list[int]] = [[] for _ in range(parts)]
    for sequence in sorted(sequences, key=lambda i: (-lengths[i], i)):
        total, part = heapq.heappop(heap)
        shards[part].append(sequence)
        heapq.heappush(heap, (total + lengths[sequence], part))
    return shards


def _bins(shard: list[int], lengths: Sequence[int], budget: int, packing: bool) -> list[list[int]]:
    """As few micro-batches as a greedy assignment finds, and those evenly filled."""
    if not shard:
        return []
    if not packing:
        return _padded_bins(shard, lengths, budget)
    total = sum(min(lengths[i], budget) for i in shard)  # a longer sequence needs one micro-batch, not several
    for count in range(math.ceil(total / budget), len(shard) + 1):
        bins = _balanced(shard, lengths, count)
        if all(len(members) == 1 or sum(lengths[i] for i in members) <= budget for members in bins):
            return [members for members in bins if members]
    raise AssertionError("one sequence a micro-batch always fits")


def _padded_bins(shard: list[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Neighbours in length share a micro-batch: rows x longest row stays within the budget."""
    bins: list[list[int]] = []
    for sequence in sorted(shard, key=lambda i: (-lengths[i], i)):
        if bins and lengths[bins[-1][0]] * (len(bins[-1]) + 1) <= budget:
            bins[-1].append(sequence)
        else:
            bins.append([sequence])
    return bins
