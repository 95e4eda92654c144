"""The closing table of `rlflow run`: what each run of a chain changed, and where its results lie."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rlflow.observe.answers import errors_path
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


@dataclass(frozen=True, slots=True)
class AnswersSummary:
    """One finished run of batch inference."""

    name: str
    result: Mapping[str, float]
    """Counts of rows, answers and tokens, and the speed."""
    output: Path


def print_answers(rows: Sequence[AnswersSummary], console: Console) -> None:
    """Print a table of counts, one row per run, and below it the file of answers and, if there is one, that of the rest."""
    if not rows:
        return
    table = Table()
    table.add_column("run", overflow="fold")
    for heading in ("rows", "answers", "dropped", "failed", "tokens read", "in answers", "sampled tok/s"):
        table.add_column(heading, justify="right")
    names = ("rows", "answers", "dropped", "failed", "prompt_tokens", "completion_tokens", "tokens_per_second")
    for row in rows:
        table.add_row(row.name, *(f"{row.result.get(name, 0):,.0f}" for name in names))
    console.print(table)
    for row in rows:
        console.print(f"{row.name} answers: {row.output}", markup=False, soft_wrap=True)
        if errors_path(row.output).is_file():
            console.print(f"{row.name} rows without an answer: {errors_path(row.output)}", markup=False, soft_wrap=True)


def print_summary(rows: Sequence[RunSummary], console: Console | None = None) -> None:
    """Print a table of figures, one row per run, and below it the paths, each on a line to be copied."""
    if not rows:
        return
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
