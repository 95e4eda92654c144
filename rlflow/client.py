"""Jobs on a cluster: submit, look, follow, stop, through Ray's job server.

Every function takes the cluster's `address`: `http://HOST:8265`, or what `ray.init` takes; without it
`RAY_API_SERVER_ADDRESS`, then `RAY_ADDRESS`, then `http://127.0.0.1:8265` is used. A cluster that cannot be
reached, refuses the token or does not know a job is a `UserError` of one line.

Ray asks for a token from version 2.52 on, but its client looks for one only with `RAY_AUTH_MODE=token`. This
client looks in Ray's places (`RAY_AUTH_TOKEN`, `RAY_AUTH_TOKEN_PATH`, `~/.ray/auth_token`) unless
`RAY_AUTH_MODE=disabled`.
"""

import asyncio
import logging
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlflow.errors import RlflowError, SpecError, UserError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient


DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")

UPLOAD_EXCLUDES = ("runs/", ".venv", ".git")
"""Never sent to the cluster, besides what .gitignore names; Ray would pack the whole working directory."""
_SUBMIT_ATTEMPTS = 6
"""A head that has just started has no agent yet to run the driver; Ray's server waits 10 s for one in each attempt."""


@dataclass(frozen=True, slots=True)
class JobInfo:
    """What the cluster knows of a job. Times are seconds since 1970 (UTC), None where it has not happened.

    `run`, `algorithm` and `model` are None for a job that is not rlflow's, or has not begun.
    """

    id: str
    status: str
    message: str | None
    run: str | None
    algorithm: str | None
    model: str | None
    start_time: float | None
    end_time: float | None


def submit(
    spec_paths: Sequence[str | Path],
    *,
    address: str | None = None,
    working_dir: str | Path = ".",
    overrides: Sequence[str] = (),
    submission_id: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Submit one job that runs these specs in order, and return its id.

    The specs are validated here first. The cluster receives `working_dir`, which therefore must hold them.
    Raises `SpecError` with every problem found.
    """
    from rlflow.spec.load import job_metadata, load_job

    jobs = [load_job(path, overrides) for path in spec_paths]
    for job, path in zip(jobs, spec_paths, strict=True):
        if not Path(job.run.dir).is_absolute():
            raise SpecError(
                f"{path}: run.dir: {job.run.dir!r} is relative, but a submitted job works in a copy that is "
                "thrown away; give an absolute path that every node sees"
            )
    return submit_entrypoint(
        entrypoint(spec_paths, working_dir, overrides),
        address=address,
        working_dir=working_dir,
        submission_id=submission_id,
        metadata={**job_metadata(jobs), **(metadata or {})},
    )


def submit_entrypoint(
    command: str,
    *,
    address: str | None = None,
    working_dir: str | Path = ".",
    submission_id: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Run a shell command on the cluster, in a copy of `working_dir`; return the job's id."""
    if not Path(working_dir).is_dir():
        raise UserError(f"--working-dir: there is no directory {working_dir}")
    runtime_env = {"working_dir": str(Path(working_dir).resolve()), "excludes": list(UPLOAD_EXCLUDES)}
    with _connected(address, job_id=submission_id) as client:
        job = {
            "entrypoint": command,
            "runtime_env": runtime_env,
            "submission_id": submission_id,
            "metadata": dict(metadata or {}),
        }
        return _submit(client, job, _SUBMIT_ATTEMPTS)


def _submit(client: "JobSubmissionClient", job: dict[str, Any], attempts: int) -> str:
    try:
        return client.submit_job(**job)
    except RuntimeError as error:
        if attempts == 1 or "No available agent" not in str(error):
            raise
    return _submit(client, job, attempts - 1)


def status(job_id: str, address: str | None = None) -> JobInfo:
    """What the cluster knows of this job."""
    with _connected(address, job_id) as client:
        return _info(client.get_job_info(job_id))


def logs(job_id: str, address: str | None = None, follow: bool = False) -> Iterator[str]:
    """The driver's output so far, in pieces; with `follow`, also what comes until the job ends."""
    with _connected(address, job_id) as client:
        client.get_job_info(job_id)  # following an unknown job would end at once, as if it had no output
        # Ray reports the end of every stream it follows, on the terminal that shows the job's output.
        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
        if not follow:
            yield client.get_job_logs(job_id)
            return
        stream = client.tail_job_logs(job_id)

        async def next_piece() -> str | None:
            return await anext(stream, None)

        with asyncio.Runner() as runner:
            while (piece := runner.run(next_piece())) is not None:
                yield piece


def stop(job_id: str, address: str | None = None) -> bool:
    """Ask a job to end; False where it had ended already."""
    with _connected(address, job_id) as client:
        return client.stop_job(job_id)


def list_jobs(address: str | None = None) -> list[JobInfo]:
    """Every job submitted to the cluster, newest first."""
    with _connected(address) as client:
        submitted = [_info(details) for details in client.list_jobs() if details.submission_id]
    return sorted(submitted, key=lambda job: job.start_time or 0, reverse=True)


def entrypoint(spec_paths: Sequence[str | Path], working_dir: str | Path, overrides: Sequence[str]) -> str:
    """The shell command that runs these specs from inside the uploaded working directory."""
    root = Path(working_dir).resolve()
    inside = []
    for path in spec_paths:
        if not Path(path).resolve().is_relative_to(root):
            raise SpecError(f"{path}: lies outside {root}, which is all that the cluster gets; see --working-dir")
        inside.append(str(Path(path).resolve().relative_to(root)))
    return shlex.join(["python", "-m", "rlflow.jobs.run", *inside, *overrides])


def resolve_address(address: str | None) -> str:
    """The address given, or that of the environment, or the local default."""
    candidates = [address, *(os.environ.get(name) for name in ADDRESS_VARIABLES), DEFAULT_ADDRESS]
    return next(candidate for candidate in candidates if candidate)


def find_token() -> str | None:
    """The cluster's token, from where Ray itself looks for it; None if there is none or it is not wanted."""
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        return None
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named).expanduser() if named else Path.home() / ".ray" / "auth_token"
    if named and not path.is_file():
        raise UserError(f"RAY_AUTH_TOKEN_PATH: there is no file {path}")
    return path.read_text().strip() if path.is_file() else None


@contextmanager
def _connected(address: str | None, job_id: str | None = None) -> Iterator["JobSubmissionClient"]:
    """A client of the cluster; failures inside the block become one clear line."""
    where = resolve_address(address)
    token = find_token()
    if token and "://" not in where:
        # Such an address is looked up over gRPC, where only Ray's own mode counts, read as Ray is imported.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    from ray.exceptions import AuthenticationError, RpcError
    from ray.job_submission import JobSubmissionClient

    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with _no_address_variables():
            client = JobSubmissionClient(where, headers=headers)
        yield client
    except AuthenticationError:
        raise UserError(_refused(where, token)) from None
    except (ConnectionError, RpcError):
        raise UserError(f"{where}: no Ray cluster answers there; see --address and RAY_ADDRESS") from None
    except RuntimeError as error:
        raise _server_error(where, job_id, str(error)) from error


@contextmanager
def _no_address_variables() -> Iterator[None]:
    """Ray lets these variables win over an address that was given; ours are resolved already."""
    saved = {name: os.environ.pop(name) for name in ADDRESS_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(saved)


def _refused(where: str, token: str | None) -> str:
    if token:
        return f"{where}: the cluster refuses this token; set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
    return f"{where}: the cluster asks for a token; set RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"


def _server_error(where: str, job_id: str | None, text: str) -> RlflowError:
    if "status code 404" in text and job_id:
        return UserError(f"{where}: there is no job {job_id}; rlflow list shows them")
    if "already exists" in text and job_id:
        return UserError(f"{where}: there is a job {job_id} already; submit under another id")
    # The server answers with nested tracebacks, whose last line says what happened.
    last_line = text.rstrip(" .\n").splitlines()[-1]
    return RlflowError(f"{where}: {last_line}")


def _info(details: Any) -> JobInfo:
    metadata = details.metadata or {}
    return JobInfo(
        id=details.submission_id,
        status=details.status.value,
        message=details.message,
        run=metadata.get("run"),
        algorithm=metadata.get("algorithm"),
        model=metadata.get("model"),
        start_time=_seconds(details.start_time),
        end_time=_seconds(details.end_time),
    )


def _seconds(milliseconds: int | None) -> float | None:
    return milliseconds / 1000 if milliseconds else None
