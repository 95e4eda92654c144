"""Ending a run's actors: what fails or hangs is named, and everything else is closed."""

import asyncio

from rlflow.cluster import closing


class Placement:
    removed = False

    def remove(self):
        self.removed = True


class Engines:
    def __init__(self):
        self.closed = False

    async def close(self):
        self.closed = True


class Broken:
    async def close(self):
        raise RuntimeError("no answer")


class Late:
    async def close(self):
        raise TimeoutError("an actor gave no answer")


class Stuck:
    async def close(self):
        await asyncio.Event().wait()


def close(*owners):
    placement = Placement()
    asyncio.run(closing.close_run(placement, *owners))
    return placement


def test_what_all_have_left_is_freed(caplog):
    assert close(Engines(), Engines()).removed
    assert not caplog.messages


def test_what_hangs_or_fails_is_named_and_stops_nothing(monkeypatch, caplog):
    monkeypatch.setattr(closing, "CLOSE_TIMEOUT_S", 0.05)
    engines = Engines()
    placement = close(Stuck(), Broken(), Late(), engines)
    assert engines.closed
    assert not placement.removed, "actors that did not end still sit there"
    assert sorted(caplog.messages) == [
        "while closing: Broken: RuntimeError: no answer",
        "while closing: Late: TimeoutError: an actor gave no answer",
        "while closing: Stuck had not ended after 0.05 s; its processes end with the job",
    ]
