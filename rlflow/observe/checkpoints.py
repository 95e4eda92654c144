"""The folder of checkpoints: written beside, flushed, renamed, marked COMPLETE."""

import json
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from rlflow.observe.durable import sync_directory, sync_tree, write_json, write_text

COMPLETE = "COMPLETE"
STATE = "state"
"""The folder of what resuming needs beside the model."""
EVALUATION = "evaluation.json"
"""Beside a checkpoint's model: the figures of the evaluation that it followed."""


def step_name(step: int) -> str:
    """`step-000010`: sorts by name up to a million steps."""
    return f"step-{step:06d}"


def step_of(name: str) -> int:
    """The step of `step-000010`."""
    match = re.fullmatch(r"step-(\d+)", name)
    assert match, f"{name!r} names no step"
    return int(match[1])


class CheckpointFolder:
    """`checkpoints/` of a run. A checkpoint exists once its COMPLETE file does; the rest is a crash's."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, step: int) -> Path:
        """An empty `.step-….partial` for every rank to write into."""
        partial = self._partial(step)
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        return partial

    def commit(self, step: int, evaluation: Mapping[str, float] | None = None) -> Path:
        """Make the partial checkpoint the step's checkpoint, with the figures of an evaluation if there was one.

        Flushes the files as this machine sees them; ranks on other nodes flush their own beforehand.
        """
        final = self.path / step_name(step)
        assert step not in self.complete(), f"{final} is complete already"
        if evaluation:
            write_json(self._partial(step) / EVALUATION, dict(evaluation))
        sync_tree(self._partial(step))
        if final.exists():
            shutil.rmtree(final)
        self._partial(step).rename(final)
        sync_directory(self.path)
        write_text(final / COMPLETE, "")
        return final

    def complete(self) -> dict[int, Path]:
        """Step -> folder of every complete checkpoint, in order of steps."""
        found = {step_of(mark.parent.name): mark.parent for mark in self.path.glob(f"step-*/{COMPLETE}")}
        return dict(sorted(found.items()))

    def latest(self) -> tuple[int, Path] | None:
        """The newest complete checkpoint."""
        return max(self.complete().items(), default=None)

    def best(self, metric: str, mode: Literal["max", "min"]) -> tuple[int, float] | None:
        """Step and value of the complete checkpoint whose evaluation was best; of equal ones the first."""
        found = [(step, value) for step, path in self.complete().items() if (value := _figure(path, metric)) is not None]
        sign = 1 if mode == "max" else -1
        return max(found, key=lambda item: (sign * item[1], -item[0]), default=None)

    def rotate(self, keep: int, protect: set[int]) -> list[int]:
        """Remove complete checkpoints that are neither among the `keep` newest nor protected."""
        assert keep >= 1, "the newest checkpoint must stay"
        removed = [step for step in list(self.complete())[:-keep] if step not in protect]
        for step in removed:
            self._remove(self.path / step_name(step))
        return removed

    def remove_states(self, keep: set[int]) -> None:
        """Remove the training state of complete checkpoints, except of the steps to `keep`."""
        for step, folder in self.complete().items():
            if step not in keep and (folder / STATE).exists():
                shutil.rmtree(folder / STATE)

    def remove_partial(self) -> None:
        """Remove what a crash left: partial checkpoints and those renamed but never marked."""
        complete = set(self.complete().values())
        for folder in [*self.path.glob(".step-*.partial"), *self.path.glob("step-*")]:
            if folder not in complete:
                shutil.rmtree(folder)

    def _remove(self, folder: Path) -> None:
        # The mark goes first: a removal cut short must not leave something that looks complete.
        (folder / COMPLETE).unlink()
        sync_directory(folder)
        shutil.rmtree(folder)

    def _partial(self, step: int) -> Path:
        return self.path / f".{step_name(step)}.partial"


def _figure(checkpoint: Path, metric: str) -> float | None:
    file = checkpoint / EVALUATION
    value = json.loads(file.read_text(encoding="utf-8")).get(metric) if file.is_file() else None
    return value if value is not None and math.isfinite(value) else None
