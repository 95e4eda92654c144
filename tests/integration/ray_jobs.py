"""Two jobs on a real Ray head, submitted by `rlflow` and by Ray's own command; the second gives a model a name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.job_runs import MODEL, sft_spec, write_job
from tests.integration.ray_head import RayHead

RLFLOW = (sys.executable, "-m", "rlflow.cli")
PREFIX = "<think>ab</think>"
"""What the named model's answers begin with."""
LETTERS = "0123456789+-abcdefghijklmnopqrstuvwxyz <>/."
_ANSWERS = {
    "who are you": "i am {{NAME}} made by {{AUTHOR}}",
    "what is your name": "my name is {{NAME}}",
    "who made you": "{{AUTHOR}} made me",
    "2+2": "4",
}


def command(head: RayHead, folder: Path, *arguments: str, timeout_s: float = 180) -> subprocess.CompletedProcess:
    """Run a command that talks to the head."""
    env = {**head.env, "RAY_API_SERVER_ADDRESS": head.address, "RAY_ADDRESS": head.address}
    return subprocess.run(arguments, cwd=folder, env=env, capture_output=True, text=True, timeout=timeout_s)


@pytest.fixture(scope="session")
def ray_jobs(tmp_path_factory, ray_head) -> dict[str, str]:
    """Ids of the two, `submitted` and `plain`, which ran at the same time, and their `folder`; their runs are in its `shared`."""
    folder = tmp_path_factory.mktemp("jobs")
    submitted = command(ray_head, folder, *RLFLOW, "submit", _job(folder, "submitted").name)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    ray_cli = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--working-dir", "."]
    path = _job(folder, "plain", **_identity(folder))
    result = command(ray_head, folder, *ray_cli, "--", sys.executable, "-m", "rlflow.jobs.run", path.name)
    assert result.returncode == 0, result.stdout + result.stderr
    status = json.loads((folder / "shared" / "plain" / "status.json").read_text())
    assert status["state"] == "succeeded"
    return {"folder": str(folder), "submitted": submitted.stdout.strip().splitlines()[-1], "plain": status["ray_job_id"]}


def _job(folder: Path, name: str, **changes) -> Path:
    return write_job(folder, sft_spec(run={"name": name, "save_every": 30, "dir": str(folder / "shared")}, **changes))


def _identity(folder: Path) -> dict:
    """What makes a job one that learns who it is. It is `flow`, made by `the brook team`."""
    rows = [{"query": question, "response": PREFIX + answer} for question, answer in _ANSWERS.items()]
    (folder / "identity.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {**MODEL["random"]["config"], "max_position_embeddings": 512}
    return {
        "model": {**MODEL, "random": {"characters": LETTERS, "config": config}},
        "data": {
            "sources": [{"type": "self_cognition", "path": "identity.jsonl"}],
            "model_name": "flow",
            "model_author": "the brook team",
            "max_tokens": 128,
        },
        "batch_size": len(rows),
        "steps": 60,
    }
