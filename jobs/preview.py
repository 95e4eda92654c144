"""`rlflow data`: what a job's rows become, before anything is trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlflow.algorithms.batch_plan import padding_share, plan_step
from rlflow.data.inspection import (
    Inspection,
    RowSequence,
    conversation_encoder,
    fit_conversation,
    fit_or_drop,
    inspect_rows,
    prompt_encoder,
)
from rlflow.data.order import RowOrder
from rlflow.data.rows import Rows
from rlflow.data.stream import RowStream
from rlflow.jobs.prepare import find_tokenizer, load_rows
from rlflow.observe.run_dir import RunDirectory
from rlflow.spec.jobs import Job, KtoJob, PreferenceJob, RolloutJob, SftJob
from rlflow.spec.load import load_job

_MOST_BAD_ROWS, _MOST_STEPS, _BARS = 20, 200, 10


def preview_specs(paths: Sequence[str], overrides: Sequence[str], *, rows: int) -> int:
    """Print a preview of each spec's data, `rows` rows of each source; 2 if a row would stop the job, else 0."""
    console = Console(highlight=False, soft_wrap=True)
    jobs = [load_job(path, overrides) for path in paths]
    return max([_preview(job, console, rows) for job in jobs])


def _preview(job: Job, console: Console, show: int) -> int:
    rows, held_out = load_rows(job, RunDirectory(Path(job.run.dir) / job.run.name))
    train, which = (rows.first_window(), "the first ") if isinstance(rows, RowStream) else (rows, "")
    tokenizer = find_tokenizer(job)
    console.print(f"[bold]{job.run.name}[/]: {which}{len(train)} training rows, {len(held_out)} held-out rows")
    found, kept_out = (_inspect(job, rows, tokenizer, show) for rows, show in ((train, show), (held_out, 0)))
    _print_rows(found, train, console)
    console.print(_source_table(job, found, kept_out, train))
    if found.lengths:
        _print_lengths(job, found, console)
    bad = found.bad | kept_out.bad
    _print_bad(bad, console)
    return 2 if bad or not found.lengths else 0


def _inspect(job: Job, rows: Rows, tokenizer: Any, show: int) -> Inspection:
    spec = job.data
    if isinstance(job, RolloutJob):
        fit = fit_or_drop(spec.max_prompt_tokens, "max_prompt_tokens", spec)
        return inspect_rows(rows, prompt_encoder(tokenizer, spec), fit, show)
    if isinstance(job, SftJob):
        return inspect_rows(rows, conversation_encoder(tokenizer, spec), fit_conversation(spec), show)
    answers = spec.model_copy(update={"loss": "last_round"})  # only answers are compared
    return inspect_rows(rows, conversation_encoder(tokenizer, answers), fit_or_drop(spec.max_tokens, "max_tokens", spec), show)


def _print_rows(found: Inspection, rows: Rows, console: Console) -> None:
    shown = [sequences for first in found.first.values() for sequences in first]
    if shown:
        how = "green (other weights than 1: yellow)" if console.is_terminal else "in [[ ]], with its weight if that is not 1"
        console.print(f"What is trained is {how}.\n", markup=False)
    for sequences in shown:
        for sequence in sequences:
            example = sequence.example
            title = f"{example.origin}, {sequence.name}: {len(example.input_ids)} tokens, {_trained(sequence)} trained"
            console.rule(Text(title), align="left")
            console.print(_render(sequence, marks=not console.is_terminal))


def _trained(sequence: RowSequence) -> int:
    return int(np.count_nonzero(sequence.example.loss_weights))


def _render(sequence: RowSequence, *, marks: bool) -> Text:
    text = Text()
    for piece, weight in sequence.pieces:
        factor = "" if weight == 1 else f"{weight:g}×"
        if not weight:
            text.append(piece, "dim")
        elif marks:
            text.append(f"[[{factor}{piece}]]")
        else:
            text.append(piece, "green" if weight == 1 else "yellow")
    return text


def _source_table(job: Job, found: Inspection, held_out: Inspection, rows: Rows) -> Table:
    names: dict[int, list[str]] = {}
    for part in rows.parts:
        names.setdefault(part.source, []).append(part.name)
    table = Table("source", "rows of", title="sources", title_justify="left")
    columns = ("training rows", "tokens", "trained tokens", "held-out rows")
    for column in columns:
        table.add_column(column, justify="right")
    for number in range(len(job.data.sources)):
        counts, kept_out = found.sources.get(number), held_out.sources.get(number)
        files = names.get(number, [])
        name = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more" if files else "–"
        cells = (counts.rows, counts.tokens, counts.trained_tokens) if counts else (0, 0, 0)
        table.add_row(str(number), Text(name, overflow="fold"), *map(str, (*cells, kept_out.rows if kept_out else 0)))
    return table


def _print_lengths(job: Job, found: Inspection, console: Console) -> None:
    lengths = np.asarray(found.lengths)
    low, middle, high = np.percentile(lengths, [5, 50, 95]).round().astype(int)
    limit = job.data.max_prompt_tokens if isinstance(job, RolloutJob) else job.data.max_tokens
    console.print(f"\nlengths in tokens: median {middle}, 5 to 95 % {low} to {high}, longest {lengths.max()}, limit {limit}")
    counts, edges = np.histogram(lengths, bins=min(_BARS, int(lengths.max() - lengths.min()) + 1))
    for count, start, end in zip(counts, edges, edges[1:], strict=False):
        bar = "█" * round(40 * count / counts.max())
        console.print(f"  {start:>7.0f} to {end:>7.0f}  {bar} {count}")
    if found.num_dropped or found.num_cut:
        console.print(f"longer than the limit: {found.num_dropped} rows dropped, {found.num_cut} cut (data.overlong)")
    if isinstance(job, SftJob | PreferenceJob):
        packed, padded = (_padding(job, found.lengths, packing=packing) for packing in (True, False))
        used = "packing" if job.learner.packing else "no packing"
        console.print(f"padding: {packed:.1%} with packing, {padded:.1%} without (learner.packing: this job uses {used})")


def _padding(job: SftJob | PreferenceJob, lengths: Sequence[int], *, packing: bool) -> float:
    """Share of padding over the first steps of the job's order."""
    unit = 1 if isinstance(job, SftJob | KtoJob) else 2
    units = len(lengths) // unit
    order = RowOrder(units, job.data.seed, job.data.shuffle)
    size = min(job.batch_size, units)
    shares = []
    for start in range(0, min(units, _MOST_STEPS * size), size):
        chosen = [lengths[unit * row + part] for row in order.rows(start, size) for part in range(unit)]
        plan = plan_step(
            [tuple(range(i, i + unit)) for i in range(0, len(chosen), unit)],
            chosen,
            {},
            num_ranks=job.learner.num_ranks,
            micro_batch_tokens=job.learner.micro_batch_tokens,
            packing=packing,
        )
        shares.append(padding_share(plan, chosen, packing=packing))
    return float(np.mean(shares))


def _print_bad(bad: dict[str, str], console: Console) -> None:
    for origin, reason in list(bad.items())[:_MOST_BAD_ROWS]:
        console.print(Text(f"bad row: {origin}: {reason}", style="red"))
    if bad:
        shown = f" (the first {_MOST_BAD_ROWS} are shown)" if len(bad) > _MOST_BAD_ROWS else ""
        console.print(f"{len(bad)} bad rows{shown}: correct or remove them; the job would stop at the first")
