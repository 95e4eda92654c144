"""Variants of GRPO that take another path through the engines, as whole jobs on CPU."""

import json
from pathlib import Path

import pytest

import rlflow
from tests.integration.job_runs import grpo_spec, metrics, run, write_job

pytestmark = pytest.mark.integration
DAPO = Path(rlflow.__file__).parents[1] / "jobs" / "specs" / "dapo.yaml"
STEPS = 8


@pytest.fixture(scope="module")
def variants(tmp_path_factory, ray_head):
    """Two runs. The first has an engine of two processes and its KL penalty in the reward, evaluates with several samples, and
    keeps its best checkpoint: that of the smallest figure, so that it is not the last."""
    folder = tmp_path_factory.mktemp("variants")
    spec = grpo_spec(
        grpo={"kl_coefficient": 0.5, "kl_in": "reward", "kl_estimator": "k1", "scale_rewards": "none"},
        rollout={"num_generations": 4, "max_completion_tokens": 4, "tensor_parallel_size": 2},
        evaluate={"every": 1, "num_samples": 3, "temperature": 0.9, "max_completion_tokens": 2, "max_rows": 8},
        run={
            **{"name": "grpo", "save_every": 2, "keep_checkpoints": 1, "deterministic": True, "log_completions_every": STEPS},
            "keep_best": {"metric": "eval_digits", "mode": "min"},
        },
        steps=STEPS,
    )
    result = run(folder, write_job(folder, spec), DAPO, env=ray_head.driver_env)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "runs", result.stdout


def test_kl_in_the_reward_holds_the_policy_back(variants):
    """The penalty is none of the loss, but of the advantages: they sum to zero by group and are not those of the rewards."""
    runs, _ = variants
    rows = metrics(runs / "grpo")
    assert rows[1]["kl_mean"] == pytest.approx(0, abs=1e-6), "the policy starts as its reference"
    assert rows[-1]["kl_mean"] > 0.001
    assert rows[-1]["reward_mean"] > rows[1]["reward_mean"]
    by_prompt = {}
    for line in (runs / "grpo" / "completions" / f"step-{STEPS:06d}.jsonl").read_text().splitlines():
        row = json.loads(line)
        by_prompt.setdefault(row["prompt_id"], []).append(row)
    for group in by_prompt.values():
        mean = sum(row["reward"] for row in group) / len(group)
        assert sum(row["advantage"] for row in group) == pytest.approx(0, abs=1e-6)
        assert any(abs(row["advantage"] - (row["reward"] - mean)) > 1e-4 for row in group)


def test_an_engine_of_two_processes_samples_from_the_learners_weights(variants):
    runs, out = variants
    assert "weights verified" in out and "while closing" not in out
    rows = metrics(runs / "grpo")[1:]
    assert 0 < max(row["sampler_logprob_abs_diff_mean"] for row in rows) < 1e-5


def test_evaluation_with_several_samples_and_the_best_checkpoint(variants):
    runs, out = variants
    rows = metrics(runs / "grpo")
    assert all(row["eval_digits_pass_at_3"] == 0 for row in rows), "half of four digits is no pass"
    assert 0 < max(row["eval_digits"] for row in rows) <= 0.5, "at most two of four digits in two tokens"
    assert {round(row["eval_digits"] * 8 * 3 * 4, 6) % 1 for row in rows} == {0}, "8 rows, 3 samples, quarters"
    best = min(rows[1:], key=lambda row: (row["eval_digits"], row["step"]))
    run_dir = runs / "grpo"
    expected = {"step": best["step"], "eval_digits": best["eval_digits"]}
    assert json.loads((run_dir / "status.json").read_text())["best"] == expected
    kept = {path.name for path in (run_dir / "checkpoints").iterdir()}
    assert kept == {f"step-{STEPS:06d}", f"step-{best['step']:06d}"}
    assert best["step"] < STEPS
    assert f"step {best['step']} (eval_digits" in (run_dir / "report.html").read_text()
    assert f"checkpoints/step-{best['step']:06d}/model" in out


def test_the_ready_spec_of_dapo_learns(variants):
    rows = metrics(variants[0] / "dapo")
    assert rows[-1]["eval_format"] > rows[0]["eval_format"] + 0.2
    assert rows[-1]["eval_format_pass_at_4"] >= rows[-1]["eval_format"]
    assert rows[-1]["eval_soft_overlong"] > rows[0]["eval_soft_overlong"]
    assert any(row["sampling_rounds"] > 1 for row in rows[1:])
    assert any(row["ratio_clipped_fraction"] > 0 for row in rows[1:])
