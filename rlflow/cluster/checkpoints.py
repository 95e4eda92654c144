"""Complete checkpoints of a run: the learner's state, the model, and where the loop stands."""

from typing import Any

from rlflow.cluster.learner_group import LearnerGroup
from rlflow.observe.run_dir import RunDirectory


class Checkpoints:
    """Writes and restores checkpoints; an older one is removed only after a newer one is complete."""

    def __init__(self, run: RunDirectory, learner: LearnerGroup, *, keep: int) -> None:
        self._run, self._learner, self._keep = run, learner, keep

    async def save(self, step: int, state: dict[str, int]) -> None:
        """Write the checkpoint of `step`."""
        folder = self._run.begin_checkpoint(step)
        await self._learner.save(str(folder / "state"), str(folder / "model"), state)
        self._run.commit_checkpoint(step)
        self._run.rotate(self._keep)

    async def restore(self) -> dict[str, Any] | None:
        """Bring the learner to the latest complete checkpoint; returns the loop's state, or None if there is none.

        What the run wrote after that step moves to `superseded/`.
        """
        latest = self._run.latest_checkpoint()
        self._run.supersede_after(-1 if latest is None else latest[0])
        return None if latest is None else await self._learner.load(str(latest[1] / "state"))
