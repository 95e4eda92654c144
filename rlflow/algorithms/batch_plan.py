"""Which rank computes which sequences, in which micro-batches: a pure function of lengths."""

import bisect
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
    sequences: Sequence[int | tuple[int, ...]],
    lengths: Sequence[int],
    token_weights: dict[int, float],
    *,
    num_ranks: int,
    micro_batch_tokens: int,
    packing: bool,
    sequence_parallel: int = 1,
) -> StepPlan:
    """Distribute `sequences` (indices into `lengths`, in tokens) over ranks and micro-batches.

    A tuple of sequences stays together, in its order: chosen and rejected, say. Ranks get equal token counts as far as whole
    units allow. A micro-batch holds at most `micro_batch_tokens` (padding included if not `packing`), except that a larger unit
    goes alone. Neighbouring ranks, `sequence_parallel` of them, share their micro-batches.
    """
    assert sequences, "an optimiser step needs at least one sequence"
    units = sorted((unit,) if isinstance(unit, int) else unit for unit in sequences)
    unit_lengths = [[lengths[i] for i in unit] for unit in units]
    sizes = [_size(members, packing=packing) for members in unit_lengths]
    shards = _balanced(range(len(units)), sizes, num_ranks // sequence_parallel)
    bins = [_bins(shard, unit_lengths, micro_batch_tokens, packing) for shard in shards]
    count = max(len(rank_bins) for rank_bins in bins)
    padding = MicroBatch(min(zip(sizes, units, strict=True))[1], is_padding=True)
    ranks = tuple(
        tuple(MicroBatch(tuple(i for unit in members for i in units[unit])) for members in rank_bins)
        + (padding,) * (count - len(rank_bins))
        for rank_bins in bins
        for _ in range(sequence_parallel)
    )
    return StepPlan(ranks, token_weights)


def padding_share(plan: StepPlan, lengths: Sequence[int], *, packing: bool) -> float:
    """Share of the tokens that go through the model which belong to no sequence: padded rows, and padding micro-batches."""
    used = computed = 0
    for micro_batch in (micro_batch for rank in plan.ranks for micro_batch in rank):
        members = [lengths[i] for i in micro_batch.sequences]
        used += 0 if micro_batch.is_padding else sum(members)
        computed += _size(members, packing=packing)
    return 1 - used / computed


def _size(lengths: Sequence[int], *, packing: bool) -> int:
    """Tokens of sequences that go through the model together, with padding."""
    return sum(lengths) if packing else max(lengths) * len(lengths)


def _balanced(sequences: Sequence[int], lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Longest first, each to the part with the fewest tokens so far."""
    heap = [(0, part) for part in range(parts)]
    shards: list[list[int]] = [[] for _ in range(parts)]
    for sequence in sorted(sequences, key=lambda i: (-lengths[i], i)):
        total, part = heapq.heappop(heap)
        shards[part].append(sequence)
        heapq.heappush(heap, (total + lengths[sequence], part))
    return shards


def _bins(shard: list[int], units: Sequence[Sequence[int]], budget: int, packing: bool) -> list[list[int]]:
    """As few micro-batches as best-fit-decreasing finds, or fewer, evenly filled if so many can be. `units`: the lengths of each
    unit."""
    if not shard:
        return []
    if not packing:
        return _padded_bins(shard, units, budget)
    sizes = [sum(unit) for unit in units]
    total = sum(min(sizes[i], budget) for i in shard)  # a larger unit needs one micro-batch, not several
    tight = _best_fit_decreasing(shard, sizes, budget)
    for count in range(math.ceil(total / budget), len(tight) + 1):
        bins = _balanced(shard, sizes, count)
        if all(len(members) == 1 or sum(sizes[i] for i in members) <= budget for members in bins):
            return [members for members in bins if members]
    return tight


def _best_fit_decreasing(shard: Sequence[int], sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Largest first, each to the fullest bin that has room for it (Johnson 1973); one larger than the budget is alone."""
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, bin), least first
    for unit in sorted(shard, key=lambda i: (-sizes[i], i)):
        place = bisect.bisect_left(room, (sizes[unit], 0))
        left, index = room.pop(place) if place < len(room) else (budget, len(bins))
        if index == len(bins):
            bins.append([])
        bins[index].append(unit)
        bisect.insort(room, (max(left - sizes[unit], 0), index))
    return bins


def _padded_bins(shard: list[int], units: Sequence[Sequence[int]], budget: int) -> list[list[int]]:
    """Neighbours in length share a micro-batch: rows x longest row stays within the budget."""
    bins: list[list[int]] = []
    for unit in sorted(shard, key=lambda i: (-max(units[i]), i)):
        together = [length for i in (*bins[-1], unit) for length in units[i]] if bins else []
        if bins and _size(together, packing=False) <= budget:
            bins[-1].append(unit)
        else:
            bins.append([unit])
    return bins
