"""Several learners in one process: a policy, and a critic or a teacher beside it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlflow.learner.learner import Learner
from rlflow.learner.process_group import leave_process_group


class Roles:
    """Learners by name. With `takes_turns`, one of them holds the device and the states of the others are in host memory."""

    def __init__(self, *, takes_turns: bool) -> None:
        self._takes_turns = takes_turns
        self._learners: dict[str, Learner] = {}
        self._holder = ""

    def __getitem__(self, name: str) -> Learner:
        return self._learners[name]

    def build(self, name: str, build: Callable[[], Learner]) -> None:
        """Add what `build` returns. The device is free for it, and it holds the device afterwards (collective)."""
        if self._takes_turns and self._learners:
            self._learners[self._holder].move("offloaded")
        self._learners[name] = build()
        self._holder = name

    def hold(self, name: str) -> Learner:
        """The learner `name`, all of whose states are on the device now (collective)."""
        if self._takes_turns and name != self._holder:
            self._learners[self._holder].move("offloaded")
            self._learners[name].move("full")
        self._holder = name
        return self._learners[name]

    def save(self, directory: Path, client_state: dict[str, Any]) -> None:
        """Write the training state of all learners that are trained: the policy's in `directory`, others in it by name."""
        for name in self._trained():
            self.hold(name).save(_folder(directory, name), client_state)

    def load(self, directory: Path) -> dict[str, Any]:
        """Restore what `save` wrote, and return its client state. Raises `LearnerError` as `Learner.load` does."""
        return [self.hold(name).load(_folder(directory, name)) for name in self._trained()][-1]

    def _trained(self) -> list[str]:
        """The policy last: it holds the device afterwards."""
        return [name for name in reversed(self._learners) if self._learners[name].is_trained]

    def close(self) -> None:
        """Free all engines and leave the process group."""
        for learner in self._learners.values():
            learner.release()
        leave_process_group()


def _folder(directory: Path, name: str) -> Path:
    return directory if name == "policy" else directory / name
