"""The client against a real Ray head that asks for a token."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import rlflow
from rlflow import client
from rlflow.errors import UserError
from tests.integration.ray_head import RayHead

pytestmark = pytest.mark.integration

SCRIPT = """
import sys, time
print("hello from", sys.argv[1], flush=True)
time.sleep(float(sys.argv[2]))
print("bye", flush=True)
"""


@pytest.fixture
def head(ray_head: RayHead, monkeypatch) -> RayHead:
    """The head, with the token findable but Ray's token mode not set: as it is for most users."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", ray_head.env["RAY_AUTH_TOKEN_PATH"])
    return ray_head


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "job.py").write_text(SCRIPT)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "big").write_text("not to be sent")
    return tmp_path


def start(head, folder, job_id, name, seconds):
    return client.submit_entrypoint(
        f"ls; python job.py {name} {seconds}",
        address=head.address,
        working_dir=folder,
        submission_id=job_id,
        metadata={"run": name, "algorithm": "grpo", "model": "org/some-model"},
    )


def wait_for(head, job_id, *states):
    deadline = time.monotonic() + 60
    while (job := client.status(job_id, head.address)).status not in states:
        assert time.monotonic() < deadline, job
        time.sleep(0.2)
    return job


def test_a_job_runs_and_is_followed_to_its_end(head, folder):
    assert start(head, folder, "followed", "first", 1) == "followed"
    text = "".join(client.logs("followed", head.address, follow=True))
    assert "hello from first\n" in text and text.endswith("bye\n")
    assert "runs" not in text.split("hello from")[0].split()
    job = wait_for(head, "followed", "SUCCEEDED")
    assert (job.run, job.algorithm, job.model) == ("first", "grpo", "org/some-model")
    assert job.start_time < job.end_time <= time.time()
    assert "".join(client.logs("followed", head.address)) == text


def test_a_job_is_stopped_and_listed(head, folder):
    job_id = start(head, folder, None, "second", 600)
    wait_for(head, job_id, "RUNNING")
    assert client.stop(job_id, head.address)
    wait_for(head, job_id, "STOPPED")
    assert not client.stop(job_id, head.address)
    listed = client.list_jobs(head.address)
    assert (listed[0].id, listed[0].run, listed[0].status) == (job_id, "second", "STOPPED")


def test_an_id_is_used_once(head, folder):
    start(head, folder, "twice", "third", 0)
    with pytest.raises(UserError, match="there is a job twice already"):
        start(head, folder, "twice", "third", 0)


@pytest.mark.parametrize("verb", [client.status, client.stop, lambda *where: list(client.logs(*where))])
def test_an_unknown_job_is_named(head, verb):
    with pytest.raises(UserError, match=f"^{head.address}: there is no job nope; rlflow list shows them$"):
        verb("nope", head.address)


def test_an_address_given_wins_over_rays_variables(head, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    client.list_jobs(head.address)
    assert os.environ["RAY_ADDRESS"] == "http://127.0.0.1:1"
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:1: no Ray cluster answers there"):
        client.list_jobs()


def test_a_wrong_or_missing_token_is_one_line(head, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    with pytest.raises(UserError, match="the cluster refuses this token; set RAY_AUTH_TOKEN"):
        client.list_jobs(head.address)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(UserError, match="the cluster asks for a token; set RAY_AUTH_TOKEN"):
        client.list_jobs(head.address)


@pytest.mark.parametrize("address", ["address", "gcs_address"])
def test_the_command_finds_the_token_for_both_kinds_of_address(head, address):
    environment = {**head.env, "COLUMNS": "160", "PYTHONPATH": str(Path(rlflow.__file__).parents[1])}
    del environment["RAY_AUTH_MODE"]
    command = [sys.executable, "-m", "rlflow.cli", "list", "--address", getattr(head, address)]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    assert "algorithm" in shown.stdout and "Traceback" not in shown.stderr
