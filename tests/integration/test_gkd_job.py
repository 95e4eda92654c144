"""A distillation job on the real engines: the student comes close to its teacher."""

from pathlib import Path

import pytest
import yaml

from tests.integration.job_runs import MODEL, assert_same_course, grpo_spec, leave_as_killed, metrics, run, sft_spec, write_job

pytestmark = pytest.mark.integration
QUICKSTART = Path(__file__).parents[2] / "jobs" / "specs" / "quickstart_gkd.yaml"


def gkd_spec(**changes):
    student = {**MODEL, "random": {**MODEL["random"], "seed": 7, "config": {**MODEL["random"]["config"], "hidden_size": 48}}}
    return {
        **grpo_spec(),
        "kind": "gkd",
        "run": {"name": "gkd", "save_every": 10, "log_completions_every": 10, "deterministic": True},
        "model": student,
        "teacher": {"from_run": "warm"},
        "gkd": {"beta": 0.5, "on_policy_fraction": 0.5, "top_k": 6},
        "rollout": {"num_generations": 2, "max_completion_tokens": 4},
        "prompts_per_step": 16,
        "steps": 24,
        **changes,
    }


def of_answers():
    return {**gkd_spec()["data"], "sources": [{"type": "run", "from_run": "answers"}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, ray_head):
    """A teacher, its answers and a student that trains on them (sequence-level distillation); a few steps of the packaged
    spec with the same teacher on devices of its own, without rewards.
    """
    folder = tmp_path_factory.mktemp("gkd")
    ready = yaml.safe_load(QUICKSTART.read_text())
    del ready["rewards"]
    ready["model"]["random"]["characters"] = MODEL["random"]["characters"]
    ready["teacher"] = {"from_run": "warm", "num_ranks": 2}
    ready["reward_pool"] = {"num_workers": 1}
    ready["data"]["held_out"] = 0
    ready["data"]["sources"][0]["size"] = 400
    ready["gkd"] |= {"top_k": None, "on_policy_fraction": 0.5}
    sources = gkd_spec()["data"]["sources"]
    answers = {
        "kind": "infer",
        "run": {"name": "answers"},
        "model": {"from_run": "warm", "dtype": "float32"},
        "data": {"sources": sources, "max_prompt_tokens": 32},
        "rollout": {"temperature": 1.0, "max_completion_tokens": 4},
    }
    specs = [sft_spec(steps=20), answers, gkd_spec(data=of_answers()), {**ready, "steps": 8}]
    result = run(folder, *(write_job(folder, spec) for spec in specs), env=ray_head.driver_env)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.mark.parametrize("on_policy", [0, 1])
def test_the_divergence_at_least_halves(folder, on_policy):
    """On the student's completions and on the rows' answers, each compared with itself."""
    rows = metrics(folder / "runs" / "gkd")
    divergences = [row["divergence_mean"] for row in rows[1:] if row["on_policy"] == on_policy]
    assert len(divergences) > 6
    assert sum(divergences[-2:]) / 2 < 0.5 * divergences[0]


def test_rows_hold_what_is_to_be_watched(folder):
    rows = metrics(folder / "runs" / "gkd")
    assert [row["step"] for row in rows] == list(range(25))
    for row in rows[1:]:
        assert {"loss", "grad_norm", "divergence_mean", "teacher_rest_mean", "weight_version", "sync_seconds"} <= row.keys()
        assert ("reward_digits_mean" in row) == (row["on_policy"] == 1), "rewards are measured on completions"
        assert 0 <= row["teacher_rest_mean"] < 0.5
    assert "eval_digits" in rows[0] and "eval_digits" in rows[-1]


def test_the_quickstart_trains_with_a_teacher_elsewhere_and_without_rewards(folder):
    rows = metrics(folder / "runs" / "quickstart_gkd")
    assert {row["on_policy"] for row in rows} == {0, 1}
    assert all(row["teacher_seconds"] > 0 for row in rows)
    divergences = [row["divergence_mean"] for row in rows if row["on_policy"] == 0]
    assert divergences[-1] < 0.8 * divergences[0]
    assert all(0 < row["divergence_mean"] < divergences[0] for row in rows if row["on_policy"] == 1)
    assert not any(name.startswith(("reward_mean", "groups_zero", "teacher_rest")) for row in rows for name in row)


def test_a_killed_run_goes_on_as_if_nothing_had_been(folder, ray_head):
    """The student, its optimiser, and two places in the data come from the checkpoint; what was logged after it is superseded."""
    result = run(folder, leave_as_killed(folder, gkd_spec(data=of_answers()), "killed", step=22), env=ray_head.driver_env)
    assert result.returncode == 0, result.stdout + result.stderr
    assert_same_course(folder / "runs" / "killed", folder / "runs" / "gkd")
