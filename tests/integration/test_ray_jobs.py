"""Jobs submitted to a real Ray head with dashboard and token authentication."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.job_runs import metrics, sft_spec, write_job
from tests.integration.ray_head import RayHead

pytestmark = pytest.mark.integration
RLFLOW = (sys.executable, "-m", "rlflow.cli")


def command(head: RayHead, folder: Path, *arguments: str, timeout_s: float = 180) -> subprocess.CompletedProcess:
    env = {**head.env, "RAY_API_SERVER_ADDRESS": head.address, "RAY_ADDRESS": head.address}
    return subprocess.run(arguments, cwd=folder, env=env, capture_output=True, text=True, timeout=timeout_s)


def job(tmp_path: Path, name: str, **run_fields) -> Path:
    spec = sft_spec()
    spec["run"] = {"name": name, "save_every": 3, "dir": str(tmp_path / "shared"), **run_fields}
    return write_job(tmp_path, spec)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory, ray_head) -> dict[str, str]:
    """Ids of two jobs that ran at the same time: one submitted by `rlflow`, and one by Ray's own command."""
    folder = tmp_path_factory.mktemp("jobs")
    submitted = command(ray_head, folder, *RLFLOW, "submit", job(folder, "submitted").name)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    ray_cli = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--working-dir", "."]
    path = job(folder, "plain")
    result = command(ray_head, folder, *ray_cli, "--", sys.executable, "-m", "rlflow.jobs.run", path.name)
    assert result.returncode == 0, result.stdout + result.stderr
    status = json.loads((folder / "shared" / "plain" / "status.json").read_text())
    assert status["state"] == "succeeded"
    return {"folder": str(folder), "submitted": submitted.stdout.strip().splitlines()[-1], "plain": status["ray_job_id"]}


def test_rlflow_submit_status_logs_list(jobs, ray_head):
    folder, job_id = Path(jobs["folder"]), jobs["submitted"]
    followed = command(ray_head, folder, *RLFLOW, "logs", "--follow", job_id)
    assert "step 6/6" in followed.stdout, followed.stdout + followed.stderr
    assert "succeeded" in command(ray_head, folder, *RLFLOW, "status", job_id).stdout.lower()
    listed = command(ray_head, folder, *RLFLOW, "list").stdout
    assert "submitted" in listed and "sft" in listed
    assert [row["step"] for row in metrics(folder / "shared" / "submitted")] == list(range(7))


def test_plain_ray_job_submit(jobs, ray_head):
    listed = command(ray_head, Path(jobs["folder"]), *RLFLOW, "status", jobs["plain"]).stdout
    assert "run: plain" in listed and "algorithm: sft" in listed and "model: " in listed, listed
