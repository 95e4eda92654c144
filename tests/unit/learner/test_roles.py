"""Learners of one process take turns on its device."""

from typing import ClassVar

import pytest

from rlflow.learner.roles import Roles


class FakeLearner:
    """Counts on the device: at most one may be there."""

    on_device: ClassVar[set[str]] = set()
    is_trained = True

    def __init__(self, name):
        self.name = name
        assert not self.on_device, "built beside another"
        self.on_device.add(name)

    def move(self, state):
        assert state in ("offloaded", "full")
        if state == "full":
            assert not self.on_device, "two at once"
            self.on_device.add(self.name)
        else:
            self.on_device.remove(self.name)


@pytest.fixture
def roles():
    FakeLearner.on_device = set()
    roles = Roles(takes_turns=True)
    for name in ("policy", "critic"):
        roles.build(name, lambda name=name: FakeLearner(name))  # pyright: ignore[reportArgumentType]
    return roles


def test_one_holds_the_device_at_a_time(roles):
    assert FakeLearner.on_device == {"critic"}
    for name in ("policy", "policy", "critic", "policy"):
        assert roles.hold(name).name == name
        assert FakeLearner.on_device == {name}
