"""A PPO job on the real engines: the reward rises, and a run goes on with its critic."""

import json
import math
from pathlib import Path

import pytest
import yaml

from tests.integration.job_runs import assert_same_course, grpo_spec, leave_as_killed, metrics, run, write_job

pytestmark = pytest.mark.integration
QUICKSTART = Path(__file__).parents[2] / "jobs" / "specs" / "quickstart_ppo.yaml"


def ppo_spec(**changes):
    return {
        **grpo_spec(),
        "kind": "ppo",
        "run": {"name": "ppo", "save_every": 5, "log_completions_every": 5, "deterministic": True},
        "rollout": {"num_generations": 2, "max_completion_tokens": 4},
        "ppo": {"epochs_per_batch": 2, "kl_coefficient": 0.01, "critic_warmup_steps": 2, "missing_eos_penalty": 0.0},
        "critic": {"optimizer": {"learning_rate": 0.003}},
        "prompts_per_step": 32,
        "steps": 20,
        **changes,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory, ray_head):
    """A run, and a few steps of the packaged spec on its model, with a critic that starts from it too."""
    folder = tmp_path_factory.mktemp("ppo")
    ready = yaml.safe_load(QUICKSTART.read_text())
    ready["model"]["from_run"] = ready["critic"]["from_run"] = "ppo"
    ready["data"]["held_out"] = 8
    ready["data"]["sources"][0]["size"] = 200
    ready |= {"prompts_per_step": 16, "steps": 6}
    result = run(folder, write_job(folder, ppo_spec()), write_job(folder, ready), env=ray_head.driver_env)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_the_reward_rises(folder):
    rows = metrics(folder / "runs" / "ppo")
    rewards = [row["reward_mean"] for row in rows[1:]]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1
    assert rows[-1]["eval_digits"] > rows[0]["eval_digits"]
    assert rows[-1]["kl_mean"] > 0


def test_rows_hold_what_is_to_be_watched(folder):
    rows = metrics(folder / "runs" / "ppo")
    of_critic = {
        "value_loss", "value_clipped_fraction", "value_grad_norm", "value_learning_rate", "values_mean", "returns_mean",
        "returns_std", "explained_variance", "advantage_mean", "advantage_std", "kl_mean",
    }  # fmt: skip
    of_policy = {"loss", "grad_norm", "learning_rate", "ratio_clipped_fraction", "entropy_mean"}
    for row in rows[1:3]:
        assert of_critic <= row.keys() and not of_policy & row.keys(), "the critic warms up alone"
    assert of_critic | of_policy <= rows[3].keys()
    assert rows[3]["sampler_logprob_abs_diff_mean"] < 1e-4
    assert rows[-1]["explained_variance"] > 0


def test_completions_are_logged_without_advantages(folder):
    lines = (folder / "runs" / "ppo" / "completions" / "step-000005.jsonl").read_text().splitlines()
    assert len(lines) == 64
    assert {json.loads(line)["advantage"] for line in lines} == {None}


def test_the_quickstart_trains(folder):
    rows = metrics(folder / "runs" / "quickstart_ppo")
    assert [row["step"] for row in rows] == list(range(7))
    assert all(math.isfinite(row["value_loss"]) for row in rows[1:])
    assert "loss" in rows[6] and "loss" not in rows[5]


def test_a_killed_run_goes_on_as_if_nothing_had_been(folder, ray_head):
    """Policy, critic and both optimisers come from the checkpoint; what was logged after it is superseded."""
    result = run(folder, leave_as_killed(folder, ppo_spec(), "killed", step=17), env=ray_head.driver_env)
    assert result.returncode == 0, result.stdout + result.stderr
    assert_same_course(folder / "runs" / "killed", folder / "runs" / "ppo")
