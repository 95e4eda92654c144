"""What a loop writes while it runs: metrics, completions, progress and status, in one place."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from rlflow.observe.clock import StepClock
from rlflow.observe.progress import Progress
from rlflow.observe.run_dir import RunDirectory
from rlflow.observe.sinks import Sinks


class Journal:
    """Writes a run's record. Evaluations are added to the row of the step they follow."""

    def __init__(self, run: RunDirectory, sinks: Sinks, progress: Progress) -> None:
        self._run, self._sinks, self._progress, self._total_steps = run, sinks, progress, 0

    def begin(self, total_steps: int, unit: str = "step") -> None:
        """The steps are about to begin; `unit` is what they are called."""
        self._total_steps = total_steps
        self._progress.begin(total_steps, unit)

    def clock(self) -> StepClock:
        """A clock for the next step; its phases are shown."""
        return StepClock(self._progress.phase)

    def timed(self, what: str, start: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[None]]:
        """`start`, saying afterwards what was started and how long it took."""

        async def started() -> None:
            self._progress.phase(f"starting the {what}")
            begin = time.perf_counter()
            await start()
            self.note(f"{what} ready after {time.perf_counter() - begin:.0f} s")

        return started

    def phase(self, name: str) -> None:
        """Show what the run does, outside of steps."""
        self._progress.phase(name)

    def step(self, step: int, metrics: Mapping[str, Any], *clocks: StepClock) -> None:
        """Record a finished step."""
        row = {"step": step, "time": time.time(), **metrics}
        for clock in clocks:
            row.update(clock.metrics())
        self._sinks.write(row)
        self._progress.step(row)
        self._run.write_status("running", step=step, total_steps=self._total_steps)

    def ended(self, early: str | None) -> None:
        """The steps are over; `early` says why, if before the last one."""
        if early is not None:
            self._progress.note(early)
            self._run.write_status("running", message=early)

    def completions(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Record a step's completions."""
        self._run.write_completions(step, rows)

    def note(self, message: str) -> None:
        """Tell the user something."""
        self._progress.note(message)
