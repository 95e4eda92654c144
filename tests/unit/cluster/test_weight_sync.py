"""A weight sync as a sequence of calls, and what it leaves behind when a side fails."""

import asyncio
from typing import Any

import pytest

from rlflow.cluster.failure import LearnerLost, RolloutsLost
from rlflow.cluster.weight_sync import WeightSync


class Side:
    """Records calls, and fails at one of them; `log` is shared by both sides."""

    def __init__(self, log, fails_at=None):
        self.log, self.fails_at = log, fails_at

    def note(self, call, error):
        self.log.append(call)
        if call == self.fails_at:
            raise error


class Rollouts(Side):
    is_dead = False

    async def call(self, method, *arguments):
        await asyncio.sleep(0)
        self.note(" ".join([method, *map(str, arguments)]), RolloutsLost("none left"))

    def mark_all_dead(self, error):
        self.is_dead = True


class Learner(Side):
    buckets = ("a", "b", "c")

    async def write_bucket(self, index):
        self.note(f"write {index}", LearnerLost("a rank died"))
        return f"handle{index}"

    async def release_buffer(self):
        self.note("release", LearnerLost("a rank died"))


def send(rollouts_fail=None, learner_fails=None):
    log: list[str] = []
    rollouts, learner = Rollouts(log, rollouts_fail), Learner(log, learner_fails)
    sync = WeightSync(rollouts, last_version=6)  # pyright: ignore[reportArgumentType]
    error: Any = None
    try:
        asyncio.run(sync.send(learner))  # pyright: ignore[reportArgumentType]
    except (LearnerLost, RolloutsLost) as raised:
        error = raised
    return log, rollouts, error, sync.version


def test_a_bucket_is_written_when_the_one_before_has_been_read():
    log, _, error, version = send()
    assert error is None
    assert version == 7
    assert sorted(log[:2]) == ["begin_update", "write 0"], "the engines get ready meanwhile"
    loads = ["load_bucket handle0 a", "write 1", "load_bucket handle1 b", "write 2", "load_bucket handle2 c"]
    assert log[2:] == [*loads, "finish_update 7", "release"]


@pytest.mark.parametrize("call", ["begin_update", "load_bucket handle0 a", "load_bucket handle2 c", "finish_update 7"])
def test_without_engines_the_send_buffer_is_freed_for_new_ones(call):
    log, _, error, _ = send(rollouts_fail=call)
    assert isinstance(error, RolloutsLost)
    assert log[-2:] == [call, "release"]


@pytest.mark.parametrize("call", ["write 0", "write 2", "release"])
def test_without_the_learner_every_engine_holds_half_of_two_versions(call):
    _, rollouts, error, _ = send(learner_fails=call)
    assert isinstance(error, LearnerLost)
    assert rollouts.is_dead
