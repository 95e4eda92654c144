"""Actors die in mid-run; the job goes on and ends well. On a real Ray head, watched as a user would watch it."""

import json
import re
import subprocess
import sys
import time
import urllib.request

import pytest

from tests.integration.job_runs import grpo_spec, metrics, start, wait_for_step, write_job
from tests.integration.ray_head import RayHead

pytestmark = pytest.mark.integration

KILL = """
import sys, ray
ray.init(address=sys.argv[1], namespace=sys.argv[2], log_to_driver=False)
for name in sys.argv[3:]:
    ray.kill(ray.get_actor(name), no_restart=False)
"""
LIST = """
import json, sys, ray
from ray.util.state import list_actors, list_placement_groups
ray.init(address=sys.argv[1], log_to_driver=False)
actors = [[a.name, a.state, a.repr_name] for a in list_actors(detail=True, limit=1000)]
print(json.dumps({"actors": actors, "groups": [g.name for g in list_placement_groups()],
                  "metrics": [f"http://{n['NodeManagerAddress']}:{n['MetricsExportPort']}/metrics" for n in ray.nodes()]}))
"""


def in_cluster(head: RayHead, script: str, *arguments: str) -> str:
    command = [sys.executable, "-c", script, head.gcs_address, *arguments]
    return subprocess.run(command, env=head.env, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.fixture
def running(tmp_path, ray_head):
    """A GRPO job on the head, past its third step."""
    spec = grpo_spec(steps=150)
    spec["run"] |= {"save_every": 3, "deterministic": False}
    path = write_job(tmp_path, spec)
    process = start(tmp_path, path, env={**ray_head.env, "RAY_ADDRESS": ray_head.gcs_address})
    run_dir = tmp_path / "runs" / "grpo"
    try:
        wait_for_step(run_dir, 3, process)
        yield process, run_dir, ray_head
    finally:
        process.kill()


def test_actors_have_names_metrics_arrive_and_deaths_are_survived(running):
    process, run_dir, head = running
    listed = json.loads(in_cluster(head, LIST))
    alive = {name: repr_name for name, state, repr_name in listed["actors"] if state == "ALIVE"}
    assert {"grpo/learner-0", "grpo/rollout-0", "grpo/reward-0"} <= alive.keys()
    assert alive["grpo/learner-0"] == "grpo/learner-0"
    assert "grpo/devices" in listed["groups"]
    exported = wait_for_metric(listed["metrics"], "ray_rlflow_reward_mean")
    assert 'run="grpo"' in exported.replace("'", '"')

    before = metrics(run_dir)[-1]["step"]
    in_cluster(head, KILL, "grpo", "grpo/rollout-0", "grpo/reward-0")
    wait_for_step(run_dir, before + 3, process)
    in_cluster(head, KILL, "grpo", "grpo/learner-0")
    wait_for_step(run_dir, metrics(run_dir)[-1]["step"] + 3, process)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, out + err
    rows = metrics(run_dir)
    assert [row["step"] for row in rows] == list(range(151)), "a step is missing or was logged twice"
    assert "learner rank died" in out and "rollout worker" in out
    versions = [row["weight_version"] for row in rows if "weight_version" in row]
    assert len(versions) == len(set(versions)), "a weight version was used twice"


def wait_for_metric(urls, name, timeout_s: float = 30):
    deadline = time.monotonic() + timeout_s
    while True:
        for url in urls:
            text = urllib.request.urlopen(url, timeout=5).read().decode()
            found = re.search(rf"^{name}{{.*$", text, re.MULTILINE)
            if found:
                return found.group(0)
        assert time.monotonic() < deadline, f"{name} did not reach the metrics endpoint"
        time.sleep(1)
