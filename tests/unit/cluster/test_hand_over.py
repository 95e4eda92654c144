"""A checkpoint is written while the learner's states are on its devices."""

import asyncio

import pytest

from rlflow.cluster.hand_over import HandOver


class FakeResidency:
    def __init__(self, takes_turns):
        self.takes_turns = takes_turns
        self.calls = []

    async def to_learning(self):
        self.calls.append("to_learning")

    async def to_sampling(self):
        self.calls.append("to_sampling")


class FakeVerification:
    async def verify_new(self, prompts):
        return None


@pytest.mark.parametrize(("takes_turns", "calls"), [(True, ["to_learning", "write", "to_sampling"]), (False, ["write"])])
def test_states_that_left_come_back_for_a_checkpoint(takes_turns, calls):
    residency = FakeResidency(takes_turns)
    hand_over = HandOver(residency, None, FakeVerification(), [])  # pyright: ignore[reportArgumentType]

    async def write():
        residency.calls.append("write")

    asyncio.run(hand_over.write(write))
    assert residency.calls == calls
