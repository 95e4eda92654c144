"""`rlflow data`: what a job's rows become, before anything is trained."""

from collections.abc import Iterator, Sequence
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
    fit_question,
    inspect_rows,
    prompt_encoder,
    question_encoder,
)
from rlflow.data.order import RowOrder
from rlflow.data.raw_rows import load_raw_rows
from rlflow.data.rows import Rows
from rlflow.data.stream import RowStream
from rlflow.errors import DataError
from rlflow.jobs.earlier_runs import with_answers
from rlflow.jobs.prepare import find_tokenizer, load_questions, load_rows, row_format, run_directory, shared_cache_dir
from rlflow.spec.jobs import InferJob, Job, KtoJob, PreferenceJob, RolloutJob, SftJob
from rlflow.spec.load import load_job

_MOST_BAD_ROWS, _MOST_STEPS, _BARS = 20, 200, 10


def preview_specs(paths: Sequence[str], overrides: Sequence[str], *, rows: int) -> int:
    """Print a preview of each spec's data, `rows` rows of each source; 2 if a row cannot be used, else 0."""
    console = Console(highlight=False, soft_wrap=True)
    jobs = [load_job(path, overrides) for path in paths]
    return max([_preview(job, console, rows) for job in jobs])


def _preview(job: Job, console: Console, show: int) -> int:
    train, held_out, counted = _load(job)
    tokenizer = find_tokenizer(job)
    console.print(f"[bold]{job.run.name}[/]: {counted}")
    found = _inspect(job, train, tokenizer, show)
    kept_out = _inspect(job, held_out, tokenizer, 0) if held_out is not None else Inspection()
    _print_rows(found, console)
    console.print(_source_table(job, found, kept_out, train))
    if found.lengths:
        _print_lengths(job, found, console)
    bad = found.bad | kept_out.bad
    _print_bad(bad, console, stops=not isinstance(job, InferJob))
    return 2 if bad or not found.lengths else 0


def _load(job: Job) -> tuple[Rows, Rows | None, str]:
    """Rows, held-out ones, and a text that counts them. Files that cannot be read as a whole are read row by row."""
    run = run_directory(job)
    if isinstance(job, InferJob):
        rows = load_questions(job, run)
        return rows, None, f"{len(rows)} rows to answer"
    try:
        rows, held_out = load_rows(job, run)
    except DataError:
        raw = load_raw_rows(with_answers(job), shared_cache_dir(run), row_format(job))
        if not any(_is_unreadable(raw, index) for index in range(len(raw))):
            raise
        return raw, None, f"{len(raw)} rows, of which some cannot be read"
    if isinstance(rows, RowStream):
        window = rows.first_window()
        return window, held_out, f"the first {len(window)} training rows, {len(held_out)} held-out rows"
    return rows, held_out, f"{len(rows)} training rows, {len(held_out)} held-out rows"


def _is_unreadable(rows: Rows, index: int) -> bool:
    try:
        rows.read([index])
    except DataError:
        return True
    return False


def _inspect(job: Job, rows: Rows, tokenizer: Any, show: int) -> Inspection:
    spec = job.data
    if isinstance(job, InferJob):
        return inspect_rows(rows, question_encoder(tokenizer, spec, job.infer.response_prefix), fit_question(spec), show)
    if isinstance(job, RolloutJob):
        fit = fit_or_drop(spec.max_prompt_tokens, "max_prompt_tokens", spec)
        return inspect_rows(rows, prompt_encoder(tokenizer, spec), fit, show)
    if isinstance(job, SftJob):
        return inspect_rows(rows, conversation_encoder(tokenizer, spec), fit_conversation(spec), show)
    answers = spec.model_copy(update={"loss": "last_round"})  # only answers are compared
    return inspect_rows(rows, conversation_encoder(tokenizer, answers), fit_or_drop(spec.max_tokens, "max_tokens", spec), show)


def _print_rows(found: Inspection, console: Console) -> None:
    shown = [sequences for first in found.first.values() for sequences in first]
    if any(_trained(sequence) for sequences in shown for sequence in sequences):
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
    trains = not isinstance(job, InferJob)
    columns = ("training rows", "tokens", "trained tokens", "held-out rows") if trains else ("rows", "tokens")
    for column in columns:
        table.add_column(column, justify="right")
    for number in range(len(job.data.sources)):
        counts, kept_out = found.sources.get(number), held_out.sources.get(number)
        files = names.get(number, [])
        name = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more" if files else "–"
        cells = (counts.rows, counts.tokens, counts.trained_tokens) if counts else (0, 0, 0)
        cells = (*cells, kept_out.rows if kept_out else 0)
        table.add_row(str(number), Text(name, overflow="fold"), *map(str, cells[: len(columns)]))
    return table


def _print_lengths(job: Job, found: Inspection, console: Console) -> None:
    lengths = np.asarray(found.lengths)
    low, middle, high = np.percentile(lengths, [5, 50, 95]).round().astype(int)
    limit = job.data.max_prompt_tokens if isinstance(job, RolloutJob | InferJob) else job.data.max_tokens
    console.print(f"\nlengths in tokens: median {middle}, 5 to 95 % {low} to {high}, longest {lengths.max()}, limit {limit}")
    for first, last, count, bar in _bars(lengths):
        console.print(f"  {first:>7} to {last:>7}  {bar} {count}")
    if found.num_dropped or found.num_cut:
        console.print(f"longer than the limit: {found.num_dropped} rows dropped, {found.num_cut} cut (data.overlong)")
    if isinstance(job, SftJob | PreferenceJob):
        packed, padded = (_padding(job, found.lengths, packing=packing) for packing in (True, False))
        used = "packing" if job.learner.packing else "no packing"
        console.print(f"padding: {packed:.1%} with packing, {padded:.1%} without (learner.packing: this job uses {used})")


def _bars(lengths: np.ndarray) -> Iterator[tuple[int, int, int, str]]:
    """Ranges of whole lengths, first and last, with how many lengths are in them and a bar."""
    starts = np.unique(np.linspace(lengths.min(), lengths.max() + 1, _BARS + 1).astype(int))
    counts, _ = np.histogram(lengths, bins=starts)
    for first, end, count in zip(starts.tolist(), starts[1:].tolist(), counts.tolist(), strict=False):
        yield first, end - 1, count, "█" * round(40 * count / counts.max())


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


def _print_bad(bad: dict[str, str], console: Console, *, stops: bool) -> None:
    for origin, reason in list(bad.items())[:_MOST_BAD_ROWS]:
        console.print(Text(f"bad row: {origin}: {reason}", style="red"))
    if bad:
        shown = f" (the first {_MOST_BAD_ROWS} are shown)" if len(bad) > _MOST_BAD_ROWS else ""
        what = "correct or remove them; the job would stop at the first" if stops else "the job records them as errors"
        console.print(f"{len(bad)} bad rows{shown}: {what}")
