"""Variants of GRPO that take another path through the engines, as whole jobs on CPU."""

import json
import os
import signal
from pathlib import Path

import pytest

import rlflow
from tests.integration.job_runs import grpo_spec, metrics, run, start, wait_for_step, write_job
from tests.integration.test_jobs import comparable

pytestmark = pytest.mark.integration


def train(folder, **changes):
    """Run a GRPO job that learns to write digits; its rows of metrics."""
    result = run(folder, write_job(folder, grpo_spec(**changes)))
    assert result.returncode == 0, result.stdout + result.stderr
    return metrics(folder / "runs" / "grpo"), result.stdout


def completions(folder, step):
    text = (folder / "runs" / "grpo" / "completions" / f"step-{step:06d}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_kl_in_the_reward_holds_the_policy_back(tmp_path):
    """The penalty is none of the loss, but of the advantages: they sum to zero by group and are not those of the rewards."""
    rows, _ = train(
        tmp_path,
        grpo={"kl_coefficient": 0.5, "kl_in": "reward", "kl_estimator": "k1", "scale_rewards": "none"},
        steps=8,
    )
    assert rows[1]["kl_mean"] == pytest.approx(0, abs=1e-6), "the policy starts as its reference"
    assert rows[-1]["kl_mean"] > 0.001
    assert rows[-1]["eval_digits"] > rows[0]["eval_digits"]
    last = completions(tmp_path, 8)
    by_prompt = {}
    for row in last:
        by_prompt.setdefault(row["prompt_id"], []).append(row)
    for group in by_prompt.values():
        mean = sum(row["reward"] for row in group) / len(group)
        assert sum(row["advantage"] for row in group) == pytest.approx(0, abs=1e-6)
        assert any(abs(row["advantage"] - (row["reward"] - mean)) > 1e-4 for row in group)


def test_dynamic_sampling_and_a_refreshed_reference_survive_a_kill(tmp_path):
    """Both runs see the same prompts and the same reference, though one is killed between two refreshes."""
    spec = grpo_spec(
        grpo={"dynamic_sampling": {"max_batches": 5}, "kl_coefficient": 0.05, "reference_every": 2},
        rollout={"num_generations": 2, "max_completion_tokens": 4},
        run={"name": "grpo", "save_every": 1, "deterministic": True},
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()
    result = run(whole, write_job(whole, spec))
    assert result.returncode == 0, result.stdout + result.stderr
    path = write_job(killed, spec)
    process = start(killed, path)
    wait_for_step(killed / "runs" / "grpo", 3, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    result = run(killed, path)
    assert result.returncode == 0, result.stdout + result.stderr

    rows = metrics(whole / "runs" / "grpo")
    steps = rows[1:]
    kl = [row["kl_mean"] for row in steps]
    assert [kl[i] == 0 for i in range(6)] == [True, False] * 3, "every other step starts with itself as the reference"
    assert any(row["sampling_rounds"] > 1 for row in steps)
    for row, before in zip(steps[1:], steps, strict=False):
        prompts = round((row["epoch"] - before["epoch"]) * 104)
        assert prompts * (1 - row["groups_dropped_fraction"]) == pytest.approx(8), "every batch is full"
    resumed = metrics(killed / "runs" / "grpo")
    assert [row["step"] for row in resumed] == [row["step"] for row in rows]
    for one, other in zip(comparable(resumed), comparable(rows), strict=True):
        one.pop("weight_version", None), other.pop("weight_version", None)
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)


def test_evaluation_with_several_samples_and_the_best_checkpoint(tmp_path):
    """`min`, so that the best is not the last."""
    rows, out = train(
        tmp_path,
        evaluate={"every": 1, "num_samples": 3, "temperature": 0.9, "max_completion_tokens": 2, "max_rows": 8},
        run={"name": "grpo", "save_every": 2, "keep_checkpoints": 1, "keep_best": {"metric": "eval_digits", "mode": "min"}},
        steps=6,
    )
    assert all(row["eval_digits_pass_at_3"] == 0 for row in rows), "half of four digits is no pass"
    assert 0 < max(row["eval_digits"] for row in rows) <= 0.5, "at most two of four digits in two tokens"
    assert {round(row["eval_digits"] * 8 * 3 * 4, 6) % 1 for row in rows} == {0}, "8 rows, 3 samples, quarters"
    best = min(rows[1:], key=lambda row: (row["eval_digits"], row["step"]))
    run_dir = tmp_path / "runs" / "grpo"
    expected = {"step": best["step"], "eval_digits": best["eval_digits"]}
    assert json.loads((run_dir / "status.json").read_text())["best"] == expected
    kept = {path.name for path in (run_dir / "checkpoints").iterdir()}
    assert kept == {"step-000006", f"step-{best['step']:06d}"}
    assert best["step"] < 6
    assert f"step {best['step']} (eval_digits" in (run_dir / "report.html").read_text()
    assert f"checkpoints/step-{best['step']:06d}/model" in out


def test_a_metric_that_is_not_evaluated_ends_the_job_before_training(tmp_path):
    spec = grpo_spec(run={"name": "grpo", "keep_best": {"metric": "eval_accuracy"}})
    result = run(tmp_path, write_job(tmp_path, spec))
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1] == (
        "run.keep_best.metric: eval_accuracy is not evaluated; the evaluation gives eval_digits, eval_reward"
    )
    assert metrics(tmp_path / "runs" / "grpo") == []


def test_the_ready_spec_of_dapo_learns(tmp_path):
    result = run(tmp_path, Path(rlflow.__file__).parents[1] / "jobs" / "specs" / "dapo.yaml")
    assert result.returncode == 0, result.stdout + result.stderr
    rows = metrics(tmp_path / "runs" / "dapo")
    assert rows[-1]["eval_format"] > rows[0]["eval_format"] + 0.2
    assert rows[-1]["eval_format_pass_at_4"] >= rows[-1]["eval_format"]
    assert rows[-1]["eval_soft_overlong"] > rows[0]["eval_soft_overlong"]
    assert any(row["sampling_rounds"] > 1 for row in rows[1:])
    assert any(row["ratio_clipped_fraction"] > 0 for row in rows[1:])
