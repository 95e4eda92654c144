"""Whole jobs on the real engines: what they write, and that killed actors and a killed driver lose nothing."""

import json
import os
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rlflow.data.tokenized import ConversationSet
from rlflow.learner.sequences import TrainSequence
from tests.integration.engines import shared_memory_of, wait_for_ends
from tests.integration.job_runs import comparable, grpo_spec, metrics, run, sft_spec, start, wait_for_step, write_job
from tests.integration.plain_training import load_plain, plain_evaluation
from tests.integration.watching import watcher

pytestmark = pytest.mark.integration
STEPS, SAVE_EVERY = 12, 4


def spec(name, **changes):
    """A job of many parts: a reference that is refreshed every other step, and groups that are sampled again."""
    fields = {
        "run": {"name": name, "save_every": SAVE_EVERY, "log_completions_every": 2, "deterministic": True},
        "model": {"from_run": "warm", "dtype": "float32"},
        "grpo": {"dynamic_sampling": {"max_batches": 5}, "kl_coefficient": 0.05, "reference_every": 2},
        "rollout": {"num_generations": 2, "max_completion_tokens": 4},
        "steps": STEPS,
    }
    return grpo_spec(**{**fields, **changes})


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """An SFT warm start and GRPO on its model, run to the end on a Ray of their own."""
    folder = tmp_path_factory.mktemp("chain")
    result = run(folder, write_job(folder, sft_spec()), write_job(folder, spec("grpo")))
    assert result.returncode == 0, result.stdout + result.stderr
    return folder, result


def test_chain_writes_the_run_directory_of_the_design(chain):
    folder, _ = chain
    for name, kept in (("warm", (4, 6)), ("grpo", (8, 12))):
        run_dir = folder / "runs" / name
        assert json.loads((run_dir / "status.json").read_text())["state"] == "succeeded"
        assert json.loads((run_dir / "resolved.json").read_text())["spec"]["run"]["name"] == name
        assert (run_dir / "report.html").stat().st_size > 10_000
        assert os.readlink(run_dir / "model") == f"checkpoints/step-{kept[-1]:06d}/model"
        assert sorted(p.name for p in (run_dir / "checkpoints").iterdir()) == [f"step-{s:06d}" for s in kept]
        assert [row["step"] for row in metrics(run_dir)] == list(range(kept[-1] + 1))


def test_chain_prints_progress_lines_and_the_table(chain):
    _, result = chain
    assert "step 6/6" in result.stdout
    assert "held-out accuracy" in result.stdout
    assert "report.html" in result.stdout


def test_the_warm_start_measures_held_out_rows_as_transformers_does(chain):
    run_dir = chain[0] / "runs" / "warm"
    held_out, _ = sorted(map(ConversationSet, (run_dir.parent / ".cache").glob("conversations-*.arrow")), key=len)
    assert len(held_out) == 16
    expected = plain_evaluation(load_plain(str(run_dir / "model")), [TrainSequence(*held_out[row]) for row in range(16)])
    logged = metrics(run_dir)[-1]
    assert {name: logged[f"eval_{name}"] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_grpo_rows_hold_the_metrics_of_the_design(chain):
    folder, _ = chain
    row = metrics(folder / "runs" / "grpo")[3]
    expected = {
        "step", "epoch", "time", "loss", "grad_norm", "learning_rate", "reward_mean", "reward_std", "reward_digits_mean",
        "groups_zero_std_fraction", "completion_tokens_mean", "completion_clipped_fraction", "entropy_mean", "kl_mean",
        "ratio_clipped_fraction", "sampler_logprob_abs_diff_mean", "weight_version", "tokens_per_second", "step_seconds",
        "generate_seconds", "reward_seconds", "learn_seconds", "sync_seconds", "idle_seconds",
    }  # fmt: skip
    assert expected <= row.keys()
    assert row["sampler_logprob_abs_diff_mean"] < 1e-4
    assert row["ratio_clipped_fraction"] == 0.0


def test_grpo_starts_from_the_warm_start_and_evaluates(chain):
    folder, _ = chain
    rows = metrics(folder / "runs" / "grpo")
    assert "eval_digits" in rows[0] and "eval_digits" in rows[-1]
    completions = (folder / "runs" / "grpo" / "completions" / "step-000002.jsonl").read_text().splitlines()
    assert len(completions) >= 8 * 2, "those of dropped groups are there too"
    logged = json.loads(completions[0])
    assert logged["rewards"].keys() == {"digits"} and logged["prompt"].startswith("<|im_start|>user")
    assert logged["weight_version"] == rows[2]["weight_version"]


def test_the_reference_is_refreshed_and_every_batch_is_full(chain):
    folder, _ = chain
    steps = metrics(folder / "runs" / "grpo")[1:]
    assert [row["kl_mean"] == 0 for row in steps] == [True, False] * (STEPS // 2), "every other step starts at its reference"
    assert any(row["sampling_rounds"] > 1 for row in steps)
    for row, before in zip(steps[1:], steps, strict=False):
        prompts = round((row["epoch"] - before["epoch"]) * 104)
        assert prompts * (1 - row["groups_dropped_fraction"]) == pytest.approx(8)


def test_model_directory_loads_with_transformers(chain):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _ = chain
    model, info = AutoModelForCausalLM.from_pretrained(folder / "runs" / "grpo" / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(folder / "runs" / "grpo" / "model")
    assert tokenizer.chat_template and model.config.vocab_size == len(tokenizer)


def test_deaths_of_actors_and_driver_change_nothing(chain, ray_head):
    """The same job as that of the chain, on a cluster where every one of its processes dies once."""
    folder, _ = chain
    path, run_dir = write_job(folder, spec("killed")), folder / "runs" / "killed"
    process = start(folder, path, env=ray_head.driver_env)
    try:
        with watcher(ray_head, "killed") as kill:
            wait_for_step(run_dir, 1, process)
            with frozen(process):
                alive = kill()
                assert {"killed/learner-0", "killed/rollout-0", "killed/reward-0"} <= alive["actors"].keys()
                assert alive["actors"]["killed/learner-0"][0] == "killed/learner-0"
                assert "killed/devices" in alive["groups"]
                kill("killed/rollout-0", "killed/reward-0")
            exported = wait_for_metric(alive["metrics"], "ray_rlflow_reward_mean")  # Ray forgets a frozen process's gauges
            assert 'run="killed"' in exported.replace("'", '"')
            wait_for_step(run_dir, SAVE_EVERY + 1, process)
            with frozen(process):
                kill("killed/learner-0")
            wait_for_step(run_dir, 2 * SAVE_EVERY + 1, process)
            with frozen(process):
                pids = [pid for _, pid in kill()["actors"].values()]
                shared = {memory for memory in shared_memory_of(pids) if "plasma" not in memory.name}
                process.kill()
    finally:
        process.kill()
    out, _ = process.communicate()
    assert "learner rank died" in out and "rollout worker" in out
    assert not wait_for_ends(set(pids)), "actors outlived their driver"
    assert not [memory for memory in shared if memory.exists()], "shared memory outlived its actors"

    result = run(folder, path, env=ray_head.driver_env)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"going on from the checkpoint of step {2 * SAVE_EVERY}\n" in result.stdout
    rows, uninterrupted = metrics(run_dir), metrics(folder / "runs" / "grpo")
    assert [row["step"] for row in rows] == [row["step"] for row in uninterrupted]
    for one, other in zip(comparable(rows), comparable(uninterrupted), strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    versions = [row["weight_version"] for row in rows if "weight_version" in row]
    assert versions == sorted(set(versions)), "a weight version was used twice"
    assert len(list((run_dir / "superseded").iterdir())) == 2, "rows after the checkpoints that learner and driver went back to"


def test_stopped_job_says_so_and_goes_on(tmp_path, ray_head):
    path = write_job(tmp_path, sft_spec(steps=400))
    process = start(tmp_path, path, env=ray_head.driver_env)
    wait_for_step(tmp_path / "runs" / "warm", 3, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=10)
    status = json.loads((tmp_path / "runs" / "warm" / "status.json").read_text())
    assert status["state"] == "stopped" and status["message"] in err
    assert re.search(r"^warm: stopped by a signal; the same command goes on from the checkpoint of step \d+$", err, re.MULTILINE)


def test_more_workers_than_the_cluster_holds(tmp_path, ray_head):
    result = run(tmp_path, write_job(tmp_path, sft_spec(learner={"num_ranks": 5})), env=ray_head.driver_env)
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("learner.num_ranks") and line.endswith("there are 2")


@contextmanager
def frozen(process: subprocess.Popen) -> Iterator[None]:
    """The job takes no further step meanwhile."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def wait_for_metric(urls, name, timeout_s: float = 30):
    deadline = time.monotonic() + timeout_s
    while True:
        for url in urls:
            text = urllib.request.urlopen(url, timeout=5).read().decode()
            found = re.search(rf"^{name}{{.*$", text, re.MULTILINE)
            if found:
                return found.group(0)
        assert time.monotonic() < deadline, f"{name} did not reach the metrics endpoint"
        time.sleep(0.2)
