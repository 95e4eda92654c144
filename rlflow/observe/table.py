"""The closing table of `rlflow run`: what each run of a chain changed, and where its results lie."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rlflow.observe.progress import duration


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One finished run; `before` and `after` are values of `metric`, None where not measured."""

    name: str
    kind: str
    metric: str
    before: float | None
    after: float | None
    time_s: float
    model_path: Path | None
    report_path: Path | None
    best_path: Path | None = None
    """Model of the best checkpoint, where `run.keep_best` asks for it."""


def print_summary(rows: Sequence[RunSummary], console: Console | None = None) -> None:
    """Print a table of figures, one row per run, and below it the paths, each on a line to be copied."""
    console = console or Console(highlight=False)
    table = Table("run", "kind", "metric")
    for heading in ("before", "after", "time"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(row.name, row.kind, row.metric, _figure(row.before), _figure(row.after), duration(row.time_s))
    console.print(table)
    for row in rows:
        for what, path in (("model", row.model_path), ("best model", row.best_path), ("report", row.report_path)):
            if path is not None:
                console.print(f"{row.name} {what}: {path}", markup=False, soft_wrap=True)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
