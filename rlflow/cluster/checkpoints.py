"""Complete checkpoints of a run: the learner's state, the model, and where the loop stands."""

import math
from collections.abc import Mapping
from typing import Any

from rlflow.cluster.learner_group import LearnerGroup
from rlflow.errors import SpecError
from rlflow.observe.run_dir import RunDirectory
from rlflow.spec.run import RunSpec


class Checkpoints:
    """Writes and restores checkpoints; an older one is removed only after a newer one is complete, and the best one never."""

    def __init__(self, run: RunDirectory, learner: LearnerGroup, spec: RunSpec) -> None:
        self._run, self._learner, self._spec = run, learner, spec

    def check_evaluation(self, metrics: Mapping[str, float]) -> None:
        """Raise `SpecError` if the first evaluation lacks what tells the best checkpoint, or when to stop."""
        for field in ("keep_best", "early_stopping"):
            spec = getattr(self._spec, field)
            if spec is not None and spec.metric not in metrics:
                names = ", ".join(sorted(metrics)) or "nothing: there are no held-out rows (data.held_out)"
                raise SpecError(f"run.{field}.metric: {spec.metric} is not evaluated; the evaluation gives {names}")

    def is_due(self, step: int, metrics: Mapping[str, float], *, is_last: bool) -> bool:
        """Whether a checkpoint follows the step: every `run.save_every` steps, at the end, and after the best evaluation."""
        return is_last or step % self._spec.save_every == 0 or self._is_best(metrics)

    async def save(self, step: int, state: dict[str, Any], metrics: Mapping[str, float]) -> None:
        """Write the checkpoint of `step`."""
        folder = self._run.begin_checkpoint(step)
        await self._learner.save(str(folder / "state"), str(folder / "model"), state)
        evaluation = {name: value for name, value in metrics.items() if name.startswith("eval_")}
        self._run.commit_checkpoint(step, evaluation)
        best = self._write_best()
        self._run.rotate(self._spec.keep_checkpoints, protect=() if best is None else (best,))
        if self._spec.keep_only_models:
            self._run.remove_states(keep=(step,))

    async def restore(self) -> dict[str, Any] | None:
        """Bring the learner to the latest complete checkpoint; returns the loop's state, or None if there is none.

        What the run wrote after that step moves to `superseded/`.
        """
        latest = self._run.latest_checkpoint()
        self._run.supersede_after(-1 if latest is None else latest[0])
        self._write_best()
        return None if latest is None else await self._learner.load(str(latest[1] / "state"))

    def _is_best(self, metrics: Mapping[str, float]) -> bool:
        spec = self._spec.keep_best
        value = None if spec is None else metrics.get(spec.metric)
        if spec is None or value is None or not math.isfinite(value):
            return False
        best = self._run.best_checkpoint(spec.metric, spec.mode)
        return best is None or (value > best[1] if spec.mode == "max" else value < best[1])

    def _write_best(self) -> int | None:
        """Put the best checkpoint into the status; returns its step."""
        spec = self._spec.keep_best
        best = None if spec is None else self._run.best_checkpoint(spec.metric, spec.mode)
        if spec is None:
            return None
        self._run.write_status("running", best=None if best is None else {"step": best[0], spec.metric: best[1]})
        return None if best is None else best[0]
