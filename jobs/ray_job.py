"""What is different when the driver itself is a Ray job (`ray job submit`)."""

import asyncio
import json
import os
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rlflow.errors import SpecError
from rlflow.spec.jobs import Job

_PROBE_TIMEOUT_S = 60.0
_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def in_ray_job() -> bool:
    """Whether this process was started by Ray's job server."""
    return _JOB_CONFIG in os.environ


def job_id() -> str:
    """Ray's id of this job: the submission id, as `ray job list` shows it, or the driver's."""
    config = json.loads(os.environ.get(_JOB_CONFIG, "{}"))
    return config.get("metadata", {}).get("job_submission_id") or ray.get_runtime_context().get_job_id()


def describe_job(metadata: dict[str, str]) -> None:
    """Add to the metadata that the cluster lists beside this job, if it was submitted (by `ray job submit`, without them).

    Ray (2.60) offers this to the client alone, at submission; the job server's own table is written here, as it does itself.
    """
    if not in_ray_job():
        return
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
    from ray.dashboard.modules.job.common import JobInfoStorageClient

    table = JobInfoStorageClient(GcsClient(address=ray.get_runtime_context().gcs_address))
    asyncio.run(_describe(table, job_id(), metadata))


async def _describe(table: Any, name: str, metadata: dict[str, str]) -> None:
    info = await table.get_info(name)
    if info is not None and not metadata.items() <= (info.metadata or {}).items():
        await table.put_info(name, replace(info, metadata={**(info.metadata or {}), **metadata}))


def check_run_dir(job: Job) -> None:
    """Inside a Ray job the working directory is a private copy: runs need a place that lasts. Raises `SpecError`."""
    if in_ray_job() and not Path(job.run.dir).is_absolute():
        raise SpecError(
            f"run.dir: {job.run.dir} is relative, but a Ray job's working directory is a private copy; give an absolute path"
        )


def check_run_dir_is_shared(job: Job) -> None:
    """Inside a Ray job, every node must see the runs. Raises `SpecError` if one does not find a file that is written here."""
    if not in_ray_job():
        return
    folder = Path(job.run.dir)
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".probe-{uuid.uuid4().hex}"
    probe.write_text("")
    try:
        blind = [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"] and not _sees(node["NodeID"], probe)]
    finally:
        probe.unlink()
    if blind:
        raise SpecError(f"run.dir: {job.run.dir} is not visible on {', '.join(blind)}; use a directory that all nodes share")


def _sees(node_id: str, path: Path) -> bool:
    affinity = NodeAffinitySchedulingStrategy(node_id, soft=False)
    task = ray.remote(_exists).options(num_cpus=0, scheduling_strategy=affinity)
    return ray.get(task.remote(str(path)), timeout=_PROBE_TIMEOUT_S)


def _exists(path: str) -> bool:
    return Path(path).exists()
