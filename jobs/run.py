"""The entry point of every job: `python -m rlflow.jobs.run SPEC… [key=value …]`, and `rlflow run`."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from rlflow.cluster.session import choose_device, connect, dashboard_url
from rlflow.errors import RlflowError, SpecError, UserError
from rlflow.jobs.checks import check_jobs, check_specs, machine_devices, read_rows
from rlflow.jobs.context import JobContext, JobRows, Machine
from rlflow.jobs.earlier_runs import output_path
from rlflow.jobs.kinds import KINDS
from rlflow.jobs.plan import place_job
from rlflow.jobs.prepare import load_questions, load_rows, run_directory
from rlflow.jobs.ray_job import describe_job, job_id
from rlflow.jobs.static_checks import check_same_spec
from rlflow.observe.checkpoints import step_name
from rlflow.observe.journal import Journal
from rlflow.observe.progress import Progress
from rlflow.observe.report import write_report
from rlflow.observe.run_dir import RunDirectory
from rlflow.observe.sinks import JsonlSink, RayMetricsSink, Sinks, TensorBoardSink
from rlflow.observe.table import AnswersSummary, RunSummary, print_answers, print_summary
from rlflow.spec.jobs import InferJob, Job, TrainingJob
from rlflow.spec.load import job_metadata, load_job, parse_job, resolved

EXIT_DONE, EXIT_FAILED, EXIT_USER_ERROR, EXIT_STOPPED = 0, 1, 2, 130
_HELD_OUT = {
    "eval_accuracy": "held-out accuracy",
    "eval_preference_accuracy": "held-out preference accuracy",
    "eval_reward": "held-out reward",
    "eval_loss": "held-out loss",
}
"""What the closing table shows of a run: the first of these metrics that it has."""
logger = logging.getLogger("rlflow")


def run_specs(paths: Sequence[str], overrides: Sequence[str], *, kind: str | None = None) -> int:
    """Run one or more specs in order, all of this kind if one is given; returns the exit code.

    Raises `UserError` before anything is started.
    """
    jobs = [load_job(path, overrides) for path in paths]
    others = [f"{path}: kind: is {job.kind}, not {kind}; `rlflow run` runs it" for path, job in zip(paths, jobs, strict=True)]
    if kind is not None and (wrong := [line for line, job in zip(others, jobs, strict=True) if job.kind != kind]):
        raise SpecError("\n".join(wrong))
    return run_jobs([(Path(path).read_text(encoding="utf-8"), job) for path, job in zip(paths, jobs, strict=True)])


def run_document(document: dict[str, Any], overrides: Sequence[str]) -> int:
    """Run a spec given as plain data; otherwise as `run_specs`."""
    return run_jobs([(yaml.safe_dump(document, allow_unicode=True, sort_keys=False), parse_job(document, overrides))])


def run_jobs(jobs: Sequence[tuple[str, Job]]) -> int:
    """Run jobs in order, each with its spec's text; otherwise as `run_specs`."""
    console = Console(highlight=False)
    _log_to(console)
    logger.info(f"{', '.join(job.run.name for _, job in jobs)}: checking what can be checked before anything starts")
    check_specs([job for _, job in jobs])
    for _, job in jobs:
        if run_directory(job).has_succeeded:
            if isinstance(job, InferJob):
                _check_answers(job)
            logger.info(f"{job.run.name}: has been done already, nothing of it is run again (another name starts a new run)")
    unfinished = [(text, job) for text, job in jobs if not run_directory(job).has_succeeded]
    if unfinished:
        _run_unfinished(unfinished, console)
    runs = [(run_directory(job), job) for _, job in jobs]
    trained = [_summary(run, job) for run, job in runs if isinstance(job, TrainingJob)]
    print_summary(trained, console)
    answered = [(job.run.name, run.read_result() or {}, output_path(job)) for run, job in runs if isinstance(job, InferJob)]
    print_answers([AnswersSummary(*summary) for summary in answered], console)
    return EXIT_DONE


def _check_answers(job: InferJob) -> None:
    """Raises `UserError` if a finished run's answers are gone, or are not those to the rows that there are now."""
    if not output_path(job).is_file():
        raise SpecError(f"infer.output: {output_path(job)} is gone, but the run that wrote it has ended; choose another run.name")
    load_questions(job, run_directory(job))


def _run_unfinished(texts: Sequence[tuple[str, Job]], console: Console) -> None:
    """Run jobs one after the other."""
    jobs = [job for _, job in texts]
    rows = read_rows(jobs)
    machine = _machine(jobs)
    describe_job(job_metadata(jobs))
    check_jobs(jobs, machine)
    for (text, job), own in zip(texts, rows, strict=True):
        _run_job(text, job, own, machine, console)


def _run_job(text: str, job: Job, rows: JobRows | None, machine: Machine, console: Console) -> None:
    run = run_directory(job)
    with run.lock():
        check_same_spec(run, job)  # again: another process may have made it meanwhile, or run it
        if not run.has_succeeded:
            rows = _load_rows(job, run) if rows is None else rows
            _open_run(run, text, job)
            _train(run, place_job(job, machine_devices(machine)).job, rows, machine, console)


def _load_rows(job: Job, run: RunDirectory) -> JobRows:
    return (load_questions(job, run),) if isinstance(job, InferJob) else load_rows(job, run)


def _open_run(run: RunDirectory, text: str, job: Job) -> None:
    if not run.exists:
        run.create(text, resolved(job))
    run.write_status("starting", ray_job_id=job_id())


def _train(run: RunDirectory, job: Job, rows: JobRows, machine: Machine, console: Console) -> None:
    """Run the job and write its status, whatever happens."""
    sinks = Sinks([JsonlSink(run), TensorBoardSink(run.path / "tensorboard"), RayMetricsSink(job.run.name, job.kind)])
    try:
        with Progress(job.run.name, job.kind, console) as progress:
            context = JobContext(run, rows, Journal(run, sinks, progress), machine, os.getcwd())
            asyncio.run(_until_stopped(job, context))
        if isinstance(job, TrainingJob):
            latest = run.latest_checkpoint()
            assert latest is not None
            run.link_model(latest[0])
        run.write_status("succeeded")
        if job.run.keep_only_models:
            run.remove_states()
    except (KeyboardInterrupt, asyncio.CancelledError):
        print(_write_stopped(run, job), file=sys.stderr)
        raise KeyboardInterrupt from None
    except BaseException as error:
        run.write_status("failed", message=str(error) or type(error).__name__)
        raise
    finally:
        sinks.close()
        write_report(run)


async def _until_stopped(job: Job, context: JobContext) -> None:
    """Run the loop; a SIGTERM (`ray job stop`, a scheduler) flushes the status, then cancels it."""
    task = asyncio.current_task()
    assert task is not None

    def stop() -> None:
        _write_stopped(context.run, job)
        task.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
    await KINDS[job.kind].run(job, context)


def _write_stopped(run: RunDirectory, job: Job) -> str:
    """The status, and what it says."""
    latest = run.latest_checkpoint()
    if isinstance(job, InferJob):
        place = "goes on with the rows that are left"
    else:
        place = (
            "begins anew: no checkpoint was written yet" if latest is None else f"goes on from the checkpoint of step {latest[0]}"
        )
    message = f"{job.run.name}: stopped by a signal; the same command {place}"
    run.write_status("stopped", message=message)
    return message


def _machine(jobs: Sequence[Job]) -> Machine:
    resources = connect()
    url = dashboard_url()
    if url:
        logger.info(f"Ray dashboard: {url}")
    device = choose_device(jobs[0].run.device, resources)
    if any(choose_device(job.run.device, resources) != device for job in jobs):
        raise SpecError("run.device: specs that run together must use the same kind of device")
    return Machine(device, int(resources.get("CPU", 1)), int(resources.get("GPU", 0)))


def _summary(run: RunDirectory, job: Job) -> RunSummary:
    rows, status = run.read_metrics(), run.read_status()
    metric = next((name for name in _HELD_OUT if any(row.get(name) is not None for row in rows)), "eval_accuracy")
    values = [value for row in rows if (value := row.get(metric)) is not None]
    return RunSummary(
        name=job.run.name,
        kind=job.kind,
        metric="expected held-out accuracy" if metric == "eval_accuracy" and job.kind == "sft" else _HELD_OUT[metric],
        before=values[0] if len(values) > 1 else None,
        after=values[-1] if values else None,
        time_s=status.time - status.started if status else 0.0,
        model_path=run.path / "model",
        report_path=run.path / "report.html",
        best_path=_best_model(run, job),
    )


def _best_model(run: RunDirectory, job: Job) -> Path | None:
    keep = job.run.keep_best
    best = None if keep is None else run.best_checkpoint(keep.metric, keep.mode)
    return None if best is None else run.path / "checkpoints" / step_name(best[0]) / "model"


class _ConsoleHandler(logging.Handler):
    """Prints above a bar, a message a line: through a pipe there is no width to wrap at."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(self.format(record), markup=False, soft_wrap=True)


def _log_to(console: Console) -> None:
    logger.handlers[:] = [_ConsoleHandler(console)]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def main(arguments: Sequence[str]) -> int:
    """Run, and turn errors into exit codes."""
    paths = [a for a in arguments if "=" not in a or Path(a).is_file()]
    overrides = [a for a in arguments if a not in paths]
    try:
        return run_specs(paths, overrides)
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USER_ERROR
    except RlflowError as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_STOPPED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
