"""`report.html`: one file without external resources that shows what a run did."""

import json
import time
from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from rlflow.observe.chart import line_chart, stacked_chart
from rlflow.observe.durable import write_text
from rlflow.observe.metrics import MetricRow, describe
from rlflow.observe.progress import duration
from rlflow.observe.run_dir import RunDirectory, RunStatus

CHARTS = (
    "reward_mean",
    "eval_accuracy",
    "eval_preference_accuracy",
    "loss",
    "token_accuracy",
    "preference_accuracy",
    "reward_margin_mean",
    "grad_norm",
    "kl_mean",
    "entropy_mean",
    "completion_tokens_mean",
    "tokens_per_second",
    "sampler_logprob_abs_diff_mean",
)
"""Metrics that get a chart of their own where a run has them, in this order."""

PHASES = ("generate", "reward", "learn", "sync", "eval", "checkpoint", "idle")
"""Parts of a step's time, in the order in which they are stacked (`<phase>_seconds`)."""

SHOWN_COMPLETIONS = 8
"""Completions shown of a step; the files hold all that were logged."""

SHOWN_CHARACTERS = 2000
"""Characters shown of a prompt or completion."""


def write_report(run: RunDirectory) -> Path:
    """Write `report.html` from what the run directory holds so far, and return its path."""
    resolved, rows = run.read_resolved(), run.read_metrics()
    template = Template(files("rlflow.observe").joinpath("report.html").read_text(encoding="utf-8"))
    page = template.substitute(
        title=escape(run.name),
        facts=_facts(resolved, run.read_status(), len(rows)),
        charts=_charts(rows),
        last_values=_last_values(rows),
        completions=_completions(run),
        spec=escape(json.dumps(resolved["spec"], indent=2, ensure_ascii=False)),
        versions=escape(json.dumps({key: resolved[key] for key in resolved if key != "spec"}, indent=2)),
    )
    write_text(run.path / "report.html", page)
    return run.path / "report.html"


def _facts(resolved: Mapping[str, Any], status: RunStatus | None, num_rows: int) -> str:
    spec = resolved["spec"]
    facts = {"Algorithm": escape(spec["kind"]), "Model": escape(model_label(spec["model"]))}
    if status is not None:
        facts["Status"] = f'<span class="{status.state}">{status.state}</span>'
        if status.message:
            facts["Message"] = f'<span class="text">{escape(status.message)}</span>'
        counted = "Rows" if spec["kind"] == "infer" else "Steps"
        facts[counted] = f"{status.step} of {status.total_steps}" if status.total_steps else f"{num_rows}"
        if status.best is not None:
            figures = ", ".join(f"{name} {value:.4g}" for name, value in status.best.items() if name != "step")
            facts["Best checkpoint"] = f"step {status.best['step']} ({escape(figures)})"
        facts["Duration"] = duration(status.time - status.started)
        facts["Finished" if status.state != "running" else "As of"] = _moment(status.time)
    return "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items())


def model_label(model: Mapping[str, Any]) -> str:
    """A short name of the `model` part of a resolved spec."""
    if model.get("random"):
        config = model["random"]["config"]
        return f"{config if isinstance(config, str) else config.get('model_type')}, random weights"
    return model.get("path") or f"run {model['from_run']}"


def _charts(rows: list[MetricRow]) -> str:
    cards = []
    for name in CHARTS:
        points = [(row["step"] or 0, value) for row in rows if (value := row.get(name)) is not None]
        if points:
            cards.append(_card(name, describe(name) or "", line_chart(points, name)))
    return "".join([*cards, _phases(rows)]) or '<p class="about">No step has finished yet.</p>'


def _phases(rows: list[MetricRow]) -> str:
    timed = [row for row in rows if row.get("step_seconds") is not None]
    series = {phase: [row.get(f"{phase}_seconds") or 0.0 for row in timed] for phase in PHASES}
    series = {phase: values for phase, values in series.items() if any(values)}
    if not series:
        return ""
    chart = stacked_chart([row["step"] or 0 for row in timed], series, "seconds by phase")
    entries = "".join(f'<span><i class="c{i % 8}"></i>{phase}</span>' for i, phase in enumerate(series))
    return _card("time of a step", "seconds, by phase", f'{chart}<div class="legend">{entries}</div>')


def _card(title: str, about: str, body: str) -> str:
    return f'<div class="card"><h3>{escape(title)}</h3><p class="about">{escape(about)}</p>{body}</div>'


def _last_values(rows: list[MetricRow]) -> str:
    first: dict[str, float] = {}
    last: dict[str, tuple[float, int]] = {}
    for row in rows:
        for name, value in row.items():
            if value is not None and name not in ("step", "time"):
                first.setdefault(name, value)
                last[name] = (value, int(row["step"] or 0))
    return "".join(
        f'<tr><td>{name}</td><td class="number">{first[name]:.5g}</td><td class="number">{value:.5g}</td>'
        f'<td class="number">{step}</td><td>{escape(describe(name) or "")}</td></tr>'
        for name, (value, step) in last.items()
    )


def _completions(run: RunDirectory) -> str:
    logged = list(run.completion_files().items())
    if not logged:
        return ""
    tables = (_completion_table(step, path) for step, path in dict([logged[0], logged[-1]]).items())
    return f"<h2>Completions</h2>{''.join(tables)}"


def _completion_table(step: int, path: Path) -> str:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    head = "".join(f"<th>{name}</th>" for name in ("prompt", "completion", "rewards", "advantage", "finish"))
    body = "".join(f"<tr>{''.join(_completion_cells(row))}</tr>" for row in rows[:SHOWN_COMPLETIONS])
    return (
        f'<h3>Step {step}</h3><p class="about">{min(len(rows), SHOWN_COMPLETIONS)} of {len(rows)} logged in '
        f'completions/{path.name}</p><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _completion_cells(row: Mapping[str, Any]) -> Iterable[str]:
    for name in ("prompt", "completion"):
        yield f'<td class="text">{escape(_shortened(row[name]))}</td>'
    rewards = "\n".join(f"{name} {_figure(value)}" for name, value in row["rewards"].items())
    failure = f"\n{row['error']}" if row.get("error") else ""
    yield f'<td class="text">{escape(_shortened(rewards + failure))}</td>'
    yield f'<td class="number">{_figure(row.get("advantage"))}</td>'
    yield f"<td>{escape(str(row.get('finish_reason') or ''))}</td>"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} …"


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
