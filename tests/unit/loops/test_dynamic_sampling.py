"""Dynamic sampling: which prompts a step takes, in which rounds, and when it gives up."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from rlflow.data.order import RowOrder
from rlflow.errors import RewardError
from rlflow.loops.grpo import GrpoLoop
from rlflow.loops.state import LoopState
from rlflow.observe.clock import StepClock
from tests.unit.loops.test_batch_metrics import group, score
from tests.unit.loops.test_requests import job

EASY = {1, 2, 5}
"""Prompts whose completions all get the same reward."""


class Prompts:
    def prompt_ids(self, index):
        return np.full(2, index, np.int32)

    def row(self, index):
        raise AssertionError("the sampler below scores by itself")


class Rounds:
    """Scores prompts as above, and remembers what it was asked for."""

    def __init__(self, easy):
        self.easy, self.asked, self.slots = easy, [], []

    async def sample(self, requests, row_of, recover):
        self.asked.append([request.prompt_id for request in requests])
        self.slots += [request.slot for request in requests]
        groups = [group([score(1.0), score(float(r.prompt_id in self.easy))], prompt_id=r.prompt_id) for r in requests]
        return SimpleNamespace(groups=sorted(groups, key=lambda g: g.summary.prompt_id), reward_seconds=0.5)


def sample(*, easy=EASY, cursor=0, rows=100, **grpo):
    """The step's groups, the rounds they took, and what was said."""
    notes, rounds = [], Rounds(easy)
    nothing = dict.fromkeys(("learner", "held_out", "checkpoints"))
    loop = GrpoLoop(
        spec=job(prompts_per_step=4, rollout={"num_generations": 2}, grpo=grpo),
        total_steps=1,
        sampler=rounds,
        hand_over=SimpleNamespace(recover=None),
        prompts=Prompts(),
        order=RowOrder(rows, seed=0, shuffle=False),
        journal=SimpleNamespace(note=notes.append),
        state=LoopState(cursor=cursor),
        **nothing,
    )
    return asyncio.run(loop._sample(1, loop.order.rows(cursor, 4), StepClock())), rounds, notes


def test_without_dynamic_sampling_there_is_one_round():
    sampled, rounds, notes = sample()
    assert rounds.asked == [[0, 1, 2, 3]]
    assert (sampled.num_prompts, sampled.num_rounds, sampled.num_useful, notes) == (4, 1, 2, [])


def test_groups_without_spread_are_replaced_until_the_batch_is_full():
    sampled, rounds, notes = sample(dynamic_sampling={})
    assert rounds.asked == [[0, 1, 2, 3], [4, 5], [6]]
    assert rounds.slots == list(range(7)), "no slot is used twice"
    assert (sampled.num_prompts, sampled.num_rounds, sampled.num_useful) == (7, 3, 4)
    assert [g.summary.prompt_id for g in sampled.groups] == list(range(7))
    assert sampled.reward_seconds == 1.5
    assert notes == []


def test_the_next_step_goes_on_behind_all_sampled_prompts():
    _, rounds, _ = sample(dynamic_sampling={}, cursor=7)
    assert rounds.asked == [[7, 8, 9, 10]]


def test_groups_are_sorted_by_prompt_whatever_the_rounds():
    sampled, _, _ = sample(dynamic_sampling={}, cursor=4, rows=6)
    ids = [g.summary.prompt_id for g in sampled.groups]
    assert ids == sorted(ids)


def test_at_the_cap_the_step_trains_on_what_was_found():
    sampled, rounds, notes = sample(easy=set(range(1, 100)), dynamic_sampling={"max_batches": 2})
    assert rounds.asked == [[0, 1, 2, 3], [4, 5, 6], [7]]
    assert (sampled.num_prompts, sampled.num_useful) == (8, 1)
    assert notes == [
        "step 1: only 1 of 4 groups have rewards that differ, after 8 prompts (grpo.dynamic_sampling.max_batches x "
        "prompts_per_step); the step trains on those"
    ]


def test_no_group_at_all_is_an_error():
    with pytest.raises(RewardError, match=r"step 1: the rewards of no group differ, after 12 prompts"):
        sample(easy=set(range(100)), dynamic_sampling={"max_batches": 3})
