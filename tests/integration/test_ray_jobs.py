"""Jobs submitted to a real Ray head with dashboard and token authentication."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.job_runs import metrics, sft_spec, write_job
from tests.integration.ray_head import RayHead

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]


def command(head: RayHead, folder: Path, *arguments: str, timeout_s: float = 180) -> subprocess.CompletedProcess:
    env = {**head.env, "RAY_API_SERVER_ADDRESS": head.address, "RAY_ADDRESS": head.address}
    return subprocess.run(arguments, cwd=folder, env=env, capture_output=True, text=True, timeout=timeout_s)


def job(tmp_path: Path, name: str, **run_fields) -> Path:
    spec = sft_spec()
    spec["run"] = {"name": name, "save_every": 3, "dir": str(tmp_path / "shared"), **run_fields}
    return write_job(tmp_path, spec)


def test_rlflow_submit_status_logs_list(tmp_path, ray_head):
    path = job(tmp_path, "submitted")
    rlflow = [sys.executable, "-m", "rlflow.cli"]
    submitted = command(ray_head, tmp_path, *rlflow, "submit", path.name)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    job_id = submitted.stdout.strip().splitlines()[-1]
    followed = command(ray_head, tmp_path, *rlflow, "logs", "--follow", job_id)
    assert "step 6/6" in followed.stdout, followed.stdout + followed.stderr
    assert "succeeded" in command(ray_head, tmp_path, *rlflow, "status", job_id).stdout.lower()
    listed = command(ray_head, tmp_path, *rlflow, "list").stdout
    assert "submitted" in listed and "sft" in listed
    assert [row["step"] for row in metrics(tmp_path / "shared" / "submitted")] == list(range(7))


def test_plain_ray_job_submit(tmp_path, ray_head):
    path = job(tmp_path, "plain")
    ray_cli = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--working-dir", "."]
    result = command(ray_head, tmp_path, *ray_cli, "--", sys.executable, "-m", "rlflow.jobs.run", path.name)
    assert result.returncode == 0, result.stdout + result.stderr
    status = json.loads((tmp_path / "shared" / "plain" / "status.json").read_text())
    assert status["state"] == "succeeded" and status["ray_job_id"]
    listed = command(ray_head, tmp_path, sys.executable, "-m", "rlflow.cli", "status", status["ray_job_id"]).stdout
    assert "run: plain" in listed and "algorithm: sft" in listed and "model: " in listed, listed
