"""Jobs submitted to a real Ray head with dashboard and token authentication."""

from pathlib import Path

import pytest

from tests.integration.job_runs import metrics
from tests.integration.ray_jobs import RLFLOW, command

pytestmark = pytest.mark.integration


def test_rlflow_submit_status_logs_list(ray_jobs, ray_head):
    folder, job_id = Path(ray_jobs["folder"]), ray_jobs["submitted"]
    followed = command(ray_head, folder, *RLFLOW, "logs", "--follow", job_id)
    assert "step 6/6" in followed.stdout, followed.stdout + followed.stderr
    assert "succeeded" in command(ray_head, folder, *RLFLOW, "status", job_id).stdout.lower()
    listed = command(ray_head, folder, *RLFLOW, "list").stdout
    assert "submitted" in listed and "sft" in listed
    assert [row["step"] for row in metrics(folder / "shared" / "submitted")] == list(range(7))


def test_plain_ray_job_submit(ray_jobs, ray_head):
    listed = command(ray_head, Path(ray_jobs["folder"]), *RLFLOW, "status", ray_jobs["plain"]).stdout
    assert "run: plain" in listed and "algorithm: sft" in listed and "model: " in listed, listed
