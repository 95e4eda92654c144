"""What a run shows while it runs: a live bar on a terminal, one line a step elsewhere."""

from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

RECENT_STEPS = 20
"""Steps over which the remaining time is estimated: enough to even out, few enough to follow a change."""


class Progress:
    """Progress of one run, as a context manager.

    `kind` is the algorithm's name (`sft`, `grpo`, …), shown beside the run's name.
    """

    def __init__(self, run_name: str, kind: str, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self._title = f"{run_name} ({kind})"
        self._total_steps = 0
        self._unit = "step"
        self._recent: deque[float] = deque(maxlen=RECENT_STEPS)
        self._bar = self._build_bar() if self.console.is_terminal else None

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def begin(self, total_steps: int, unit: str = "step") -> None:
        """The steps (or rows) are about to begin, and this many there are."""
        self._unit = unit
        self._total_steps = total_steps
        if self._bar:
            self._bar.update(self._bar.task_ids[0], total=total_steps)
        else:
            self.note(f"{self._title}: {total_steps} {unit}s")

    def phase(self, name: str) -> None:
        """Show what the run does now, such as `generate` or `learn` (on a terminal only)."""
        if self._bar:
            self._bar.update(self._bar.task_ids[0], phase=name)

    def step(self, row: Mapping[str, Any]) -> None:
        """Show a finished step; `row` is its row of metrics."""
        if row.get("step_seconds") is not None and row["step"] > 0:  # step 0 is an evaluation
            self._recent.append(row["step_seconds"])
        figures = "  ".join(describe_step(row, self._remaining_s(row["step"])))
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=row["step"], figures=figures)
        else:
            self.note(f"{self._unit} {row['step']}/{self._total_steps}  {figures}")

    def note(self, message: str) -> None:
        """Print a line (a warning, say) above the bar."""
        # Unwrapped: a line of a log must stay a line, however narrow the (absent) terminal.
        self.console.print(message, markup=False, soft_wrap=True)

    def _remaining_s(self, step: int) -> float | None:
        if not self._recent:
            return None
        return (self._total_steps - step) * sum(self._recent) / len(self._recent)

    def _build_bar(self) -> Bar:
        columns = ("{task.description}", BarColumn(bar_width=20), MofNCompleteColumn())
        bar = Bar(
            *columns,
            TextColumn("{task.fields[figures]}", markup=False),
            TextColumn("[dim]{task.fields[phase]}"),
            console=self.console,
        )
        bar.add_task(self._title, total=None, figures="", phase="starting")
        return bar


def describe_step(row: Mapping[str, Any], remaining_s: float | None) -> list[str]:
    """The figures of one step that a person follows, those that the row has."""
    figures = (
        ("reward_mean", lambda value: f"reward {value:.2f}"),
        ("loss", lambda value: f"loss {value:.4f}"),
        ("preference_accuracy", lambda value: f"preference accuracy {value:.2f}"),
        ("token_accuracy", lambda value: f"token accuracy {value:.2f}"),
        ("eval_accuracy", lambda value: f"eval accuracy {value:.2f}"),
        ("tokens_per_second", lambda value: f"{value:,.0f} tok/s"),
        ("step_seconds", lambda value: f"{value:.1f} s/step"),
    )
    shown = [write(row[name]) for name, write in figures if row.get(name) is not None]
    return shown if remaining_s is None else [*shown, f"ETA {duration(remaining_s)}"]


def duration(seconds: float) -> str:
    """`3:20`, or `1:03:20` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
