import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlflow.rewards import RewardScorer
from rlflow.spec.rewards import AccuracySpec, CosineSpec, FormatSpec, PluginSpec, RepetitionSpec, SoftOverlongSpec


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until_dead(pids: list[int]) -> bool:
    deadline = time.monotonic() + 10.0
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(alive, pids))


def test_built_in_rewards_add_up(make_sample):
    specs = [
        AccuracySpec(weight=2.0),
        FormatSpec(pattern="\\d+", weight=0.5),
        CosineSpec(column="gold"),
        SoftOverlongSpec(cache_tokens=50),
        RepetitionSpec(ngram=1),
    ]
    batch = [
        make_sample("59", tokens=100, solution="59", gold="59"),
        make_sample("it is 5", tokens=75, solution="59", gold=None),
        make_sample("59", tokens=0, gold="59"),
    ]
    with RewardScorer(specs, max_completion_tokens=100) as scorer:
        right, wrong, failed = scorer.score(batch)
    assert right.by_name == {"accuracy": 1.0, "format": 1.0, "cosine": 0.5, "soft_overlong": -1.0, "repetition": 0.0}
    assert right.total == 2.0 + 0.5 + 0.5 - 1.0
    assert wrong.by_name == {"accuracy": 0.0, "format": 0.0, "cosine": None, "soft_overlong": -0.5, "repetition": 0.0}
    assert wrong.total == -0.5
    assert failed.total is None
    assert [failure.reward for failure in failed.failures] == ["accuracy"]
    assert failed.failures[0].message == "row has no column 'solution' (there are: gold)"
    assert pickle.loads(pickle.dumps(failed)) == failed


def test_a_sample_that_every_reward_leaves_out_has_no_total(make_sample):
    with RewardScorer([AccuracySpec()], max_completion_tokens=100) as scorer:
        (score,) = scorer.score([make_sample("59", solution="")])
    assert (score.total, score.by_name, score.failures) == (None, {"accuracy": None}, ())


PID_PLUGIN = """
import subprocess

@rlflow.reward
def f(sample):
    return os.getpid()

@rlflow.reward
def started_program(sample):
    return subprocess.Popen(["sleep", "600"]).pid

@rlflow.reward
def hang(sample):
    print(os.getpid(), flush=True)
    time.sleep(600)
"""


def test_nothing_is_left_after_close(write_plugin, tmp_path, make_sample):
    write_plugin(PID_PLUGIN)
    specs = [PluginSpec(target=f"plugin.py:{name}") for name in ("f", "started_program")]
    with RewardScorer(specs, max_completion_tokens=100, cwd=str(tmp_path)) as scorer:
        (score,) = scorer.score([make_sample()])
        pids = [int(pid) for pid in score.by_name.values() if pid is not None]
        assert len(pids) == 2 and all(map(alive, pids))
    assert wait_until_dead(pids)


@pytest.mark.parametrize("name", ["f", "hang"])
def test_nothing_is_left_after_the_parent_is_killed(write_plugin, tmp_path, name):
    write_plugin(PID_PLUGIN)
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path), name], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        pid = int(float(parent.stdout.readline()))
        assert alive(pid)
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        assert wait_until_dead([pid])


PARENT = """
import sys, time
from rlflow.rewards import RewardSample, RewardScorer
from rlflow.spec.rewards import PluginSpec

spec = PluginSpec(target=f"plugin.py:{sys.argv[2]}")
scorer = RewardScorer([spec], max_completion_tokens=100, cwd=sys.argv[1])
sample = RewardSample(0, 0, [], "", "", 0, [], "stop", {})
print(scorer.score([sample])[0].total, flush=True)
time.sleep(600)
"""


def test_the_plugin_api_is_light():
    heavy = ["torch", "ray", "vllm", "deepspeed", "transformers", "datasets", "math_verify"]
    check = f"import sys, rlflow, rlflow.rewards; rlflow.reward; print([m for m in {heavy} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
