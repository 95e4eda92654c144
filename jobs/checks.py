"""Everything that is checked before the first job of a chain starts."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

from rlflow.data.stream import RowStream
from rlflow.data.streamed_conversations import forget_windows
from rlflow.errors import SpecError
from rlflow.jobs.context import JobRows, Machine
from rlflow.jobs.earlier_runs import chain_problems, waits_for_answers
from rlflow.jobs.plan import Devices, local_devices, model_problems, place_job
from rlflow.jobs.prepare import (
    cache_dir,
    check_vocabulary,
    fetch_model,
    find_tokenizer,
    load_questions,
    load_rows,
    prepare_conversations,
    prepare_rows,
    run_directory,
)
from rlflow.jobs.ray_job import check_run_dir, check_run_dir_is_shared
from rlflow.jobs.rewards import find_reward_models, without_models_of
from rlflow.jobs.static_checks import static_problems
from rlflow.observe.run_dir import RunDirectory
from rlflow.rewards import check_plugins
from rlflow.spec.jobs import GkdJob, InferJob, Job, RolloutJob
from rlflow.spec.rewards import JudgeSpec, ModelRewardSpec, PluginSpec

_WITH_MODELS = (ModelRewardSpec, JudgeSpec)


def check_specs(jobs: Sequence[Job]) -> None:
    """What can be found without Ray: missing files and runs, plugins that do not import. Raises `UserError`."""
    names = [job.run.name for job in jobs]
    if len(set(names)) < len(names):
        raise SpecError("run.name: two of the specs have the same name")
    for job in jobs:
        check_run_dir(job)
    problems: list[list[str]] = []
    for index, job in enumerate(jobs):
        earlier = names[:index]
        found = [*chain_problems(job, jobs[:index]), *static_problems(job, earlier)]
        if not run_directory(job).has_succeeded:
            found += model_problems(job, earlier)
        problems.append(list(dict.fromkeys(found)))
    _raise_all(jobs, problems)
    for index, job in enumerate(jobs):
        if not run_directory(job).has_succeeded:
            run_directory(job).check_lock()
            _check_rewards(job, names[:index])


def _check_rewards(job: Job, earlier_runs: Sequence[str]) -> None:
    """Models may not load, names may clash. Plugins, and names beside theirs, have been checked with the spec."""
    if not isinstance(job, RolloutJob | InferJob):
        return
    has_plugins, has_models = (any(isinstance(reward, kind) for reward in job.rewards) for kind in (PluginSpec, _WITH_MODELS))
    if has_models or not has_plugins:
        rewards = find_reward_models(without_models_of(job, tuple(earlier_runs)))
        check_plugins(rewards, max_completion_tokens=job.rollout.max_completion_tokens, cwd=os.getcwd())


def read_rows(jobs: Sequence[Job]) -> list[JobRows | None]:
    """Training and held-out rows of each job. They are tokenised, so that a bad one ends the chain before Ray starts; those for
    the model of an earlier job are only read, and those that an earlier job will write not yet: None. Raises `UserError`.
    """
    names = [job.run.name for job in jobs]
    return [_read_rows(job, names[:index]) for index, job in enumerate(jobs)]


def _read_rows(job: Job, earlier_runs: Sequence[str]) -> JobRows | None:
    if waits_for_answers(job, earlier_runs):
        return None
    run = run_directory(job)
    if isinstance(job, InferJob):  # whose bad rows are recorded, and stop nothing
        if job.model.from_run not in earlier_runs:
            find_tokenizer(job)
        return (load_questions(job, run),)
    parts = load_rows(job, run)
    if job.data.streaming is not None:
        _renew_stream(run)
    if job.model.from_run in earlier_runs:
        for rows in parts:
            read = rows.first_window() if isinstance(rows, RowStream) else rows
            read.read(range(len(read)))
        return parts
    tokenizer = find_tokenizer(job)
    for rows in parts:
        prepare_rows(rows, tokenizer, job, run)
    if isinstance(job, GkdJob) and job.gkd.on_policy_fraction < 1:
        prepare_conversations(parts[0], tokenizer, job, run)
    for field, model in job.other_models.items():
        if model.from_run not in earlier_runs:
            check_vocabulary(fetch_model(model, Path(job.run.dir), field), tokenizer, field)
    return parts


def _renew_stream(run: RunDirectory) -> None:
    """Until something was trained on it, a stream is read anew. Raises `UserError` if another driver is reading it."""
    with run.lock():
        if run.latest_checkpoint() is None:
            forget_windows(cache_dir(run))


def check_jobs(jobs: Sequence[Job], machine: Machine) -> None:
    """Whether every job fits the machine. Raises `UserError`."""
    devices = machine_devices(machine)
    for job in jobs:
        check_run_dir_is_shared(job)
    names = [job.run.name for job in jobs]
    _raise_all(jobs, [place_job(job, devices, names[:index]).problems for index, job in enumerate(jobs)])


def _raise_all(jobs: Sequence[Job], problems: Sequence[Sequence[str]]) -> None:
    """All problems of all jobs at once; the run's name tells jobs of a chain apart."""
    lines = [
        f"{job.run.name}: {problem}" if len(jobs) > 1 else problem
        for job, found in zip(jobs, problems, strict=True)
        for problem in found
    ]
    if lines:
        raise SpecError("\n".join(lines))


def machine_devices(machine: Machine) -> Devices:
    """The cluster's devices; their memory is known only if this node has one of them."""
    local = local_devices()
    if machine.device == "cpu":
        return Devices("cpu", machine.num_cpus, local.memory_gib)
    return Devices("gpu", machine.num_gpus, local.memory_gib if local.device == "gpu" else math.inf)
