import random

import pytest

from rlflow.algorithms.batch_plan import MicroBatch, padding_share, plan_step


def plan(lengths, *, ranks=1, budget=100, packing=True, sequences=None):
    sequences = range(len(lengths)) if sequences is None else sequences
    return plan_step(
        sequences,
        lengths,
        dict.fromkeys(sequences, 0.5),
        num_ranks=ranks,
        micro_batch_tokens=budget,
        packing=packing,
    )


def real(step):
    """Micro-batches of each rank, without padding."""
    return [[micro.sequences for micro in rank if not micro.is_padding] for rank in step.ranks]


def tokens(micro, lengths, packing):
    used = [lengths[i] for i in micro.sequences]
    return sum(used) if packing else max(used) * len(used)


def random_cases():
    for seed in range(60):
        chance = random.Random(seed)
        longest = chance.choice([5, 60, 300])
        lengths = [chance.randint(1, longest) for _ in range(chance.randint(1, 60))]
        yield lengths, chance.randint(1, 9), chance.randint(1, 200), bool(seed % 2)


@pytest.mark.parametrize(("lengths", "ranks", "budget", "packing"), list(random_cases()))
def test_random_plans_keep_every_promise(lengths, ranks, budget, packing):
    step = plan(lengths, ranks=ranks, budget=budget, packing=packing)
    assert len(step.ranks) == ranks
    assert len({len(rank) for rank in step.ranks}) == 1, "every rank runs equally many micro-batches"
    placed = [i for rank in real(step) for members in rank for i in members]
    assert sorted(placed) == list(range(len(lengths))), "every sequence exactly once"
    for micro in (micro for rank in step.ranks for micro in rank):
        assert len(micro.sequences) == 1 or tokens(micro, lengths, packing) <= budget
    totals = [sum(lengths[i] for members in rank for i in members) for rank in real(step)]
    assert max(totals) - min(totals) <= max(lengths), "ranks differ by no more than one sequence"
    assert step == plan(lengths, ranks=ranks, budget=budget, packing=packing), "deterministic"


def test_padding_fills_up_ranks_with_the_shortest_sequence():
    step = plan([90, 80, 10], ranks=4, budget=100)
    assert real(step) == [[(0,)], [(1,)], [(2,)], []]
    assert step.ranks[3] == (MicroBatch((2,), is_padding=True),)


def test_padding_comes_last():
    step = plan([60, 60, 60, 200], ranks=2, budget=100)
    assert real(step) == [[(3,)], [(0,), (1,), (2,)]]
    assert step.ranks[0] == (MicroBatch((3,)), *[MicroBatch((0,), is_padding=True)] * 2)


@pytest.mark.parametrize("packing", [True, False])
def test_a_sequence_beyond_the_budget_goes_alone(packing):
    assert sorted(real(plan([1000, 10, 20], budget=100, packing=packing))[0]) == [(0,), (2, 1)]
    assert real(plan([1000], budget=100, packing=packing)) == [[(0,)]]
    assert sorted(real(plan([500, 1000], budget=1, packing=packing))[0]) == [(0,), (1,)]


def test_packed_micro_batches_are_few_and_evenly_filled():
    lengths = [50, 50, 40, 40, 10, 10]
    [micro_batches] = real(plan(lengths, budget=100))
    assert sorted(sum(lengths[i] for i in members) for members in micro_batches) == [100, 100]


def test_bins_that_can_only_be_full_are_filled_best_fit_first():
    """Evenly, 3 3 2 2 2 would need three bins of six tokens."""
    assert real(plan([3, 3, 2, 2, 2], budget=6)) == [[(0, 1), (2, 3, 4)]]
    assert real(plan([4, 3, 2, 2, 1], budget=6)) == [[(0, 3), (1, 2, 4)]], "evenly where so few bins can be even"


def test_padded_micro_batches_hold_neighbours_in_length():
    lengths = [5, 50, 6, 48, 4]
    assert real(plan(lengths, budget=100, packing=False)) == [[(1, 3), (2, 0, 4)]]


def test_padding_tokens_count_against_the_budget():
    lengths = [60, 10, 10]
    assert real(plan(lengths, budget=100, packing=True)) == [[(0, 1, 2)]]
    assert real(plan(lengths, budget=100, packing=False)) == [[(0,), (1, 2)]]


def test_a_plan_covers_only_the_sequences_it_was_given():
    step = plan([10, 20, 30, 40], sequences=[1, 3], ranks=2)
    assert real(step) == [[(3,)], [(1,)]]
    assert step.token_weights == {1: 0.5, 3: 0.5}


def test_the_order_of_sequences_does_not_matter():
    lengths = [7, 7, 7, 3, 9, 9]
    assert plan(lengths, ranks=2, budget=16) == plan(lengths, ranks=2, budget=16, sequences=[5, 3, 1, 0, 4, 2])


def test_share_of_padding():
    lengths = [10, 30, 60]
    assert padding_share(plan(lengths), lengths, packing=True) == 0
    one_row = plan(lengths, budget=180, packing=False)  # three rows of 60
    assert padding_share(one_row, lengths, packing=False) == pytest.approx(80 / 180)
    uneven = plan([50, 50, 50], ranks=2, budget=50)  # the second rank repeats a sequence that counts zero times
    assert padding_share(uneven, [50, 50, 50], packing=True) == pytest.approx(1 / 4)


def test_neighbouring_ranks_share_their_micro_batches():
    shared = plan_step(range(5), [9, 8, 7, 6, 5], {}, num_ranks=4, micro_batch_tokens=100, packing=True, sequence_parallel=2)
    two = plan_step(range(5), [9, 8, 7, 6, 5], {}, num_ranks=2, micro_batch_tokens=100, packing=True)
    assert shared.ranks == (two.ranks[0], two.ranks[0], two.ranks[1], two.ranks[1])
