"""Everything that is checked before the first job of a chain starts."""

import math
import os
from collections.abc import Sequence

from rlflow.errors import SpecError
from rlflow.jobs.context import Machine
from rlflow.jobs.plan import Devices, local_devices, plan_job
from rlflow.jobs.prepare import load_rows
from rlflow.jobs.ray_job import check_run_dir
from rlflow.jobs.rewards import find_reward_models, without_models_of
from rlflow.jobs.static_checks import static_problems
from rlflow.observe.run_dir import RunDirectory
from rlflow.rewards import check_plugins
from rlflow.spec.jobs import InferJob, Job, RolloutJob


def check_specs(jobs: Sequence[Job]) -> None:
    """What can be found without Ray: missing files and runs, plugins that do not import. Raises `UserError`."""
    names = [job.run.name for job in jobs]
    if len(set(names)) < len(names):
        raise SpecError("run.name: two of the specs have the same name")
    _raise_all(jobs, [static_problems(job, names[:index]) for index, job in enumerate(jobs)])
    for index, job in enumerate(jobs):
        if isinstance(job, RolloutJob | InferJob):
            rewards = find_reward_models(without_models_of(job, tuple(names[:index])))
            check_plugins(rewards, max_completion_tokens=job.rollout.max_completion_tokens, cwd=os.getcwd())


def check_jobs(jobs: Sequence[Job], machine: Machine) -> None:
    """Whether every job fits the machine, and the rows of the later ones. Raises `UserError`.

    The first job's rows are read by the job itself, which is about to start.
    """
    devices = machine_devices(machine)
    for job in jobs:
        check_run_dir(job)
    names = [job.run.name for job in jobs]
    _raise_all(jobs, [plan_job(job, devices, names[:index]).problems for index, job in enumerate(jobs)])
    for job in jobs[1:]:
        if isinstance(job, InferJob):  # whose bad rows are recorded, and stop nothing
            continue
        for rows in load_rows(job, RunDirectory(f"{job.run.dir}/{job.run.name}")):
            rows.read(range(len(rows)))


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
