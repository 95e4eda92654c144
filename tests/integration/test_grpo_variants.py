"""Variants of GRPO that take another path through the engines, as whole jobs on CPU."""

import json

import pytest

from tests.integration.job_runs import grpo_spec, metrics, run, write_job

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
