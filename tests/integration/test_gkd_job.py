"""A distillation job on the real engines: the student comes close to its teacher."""

import json
import re
from pathlib import Path

import pytest
import yaml

from tests.integration.job_runs import MODEL, assert_same_course, grpo_spec, leave_as_killed, metrics, run, sft_spec, write_job

pytestmark = pytest.mark.integration
SPECS = Path(__file__).parents[2] / "jobs" / "specs"
ROWS = 190
"""That the teacher is asked."""


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
    """A teacher, its right answers by the ready spec of batch inference, and a student that trains on them (sequence-level
    distillation); a few steps of the ready spec with the same teacher on devices of its own, without rewards.
    """
    folder = tmp_path_factory.mktemp("gkd")
    ready = yaml.safe_load((SPECS / "quickstart_gkd.yaml").read_text())
    del ready["rewards"]
    ready["model"]["random"]["characters"] = MODEL["random"]["characters"]
    ready["teacher"] = {"from_run": "warm", "num_ranks": 2}
    ready["reward_pool"] = {"num_workers": 1}
    ready["data"]["held_out"] = 0
    ready["data"]["sources"][0]["size"] = 400
    ready["gkd"] |= {"top_k": None, "on_policy_fraction": 0.5}
    answers = yaml.safe_load((SPECS / "quickstart_infer.yaml").read_text())
    answers["run"]["name"] = "answers"
    answers["model"]["from_run"] = "warm"
    answers["data"]["sources"] = [{**gkd_spec()["data"]["sources"][0], "size": ROWS}]
    specs = [sft_spec(steps=20), answers, gkd_spec(data=of_answers()), {**ready, "steps": 8}]
    result = run(folder, *(write_job(folder, spec) for spec in specs), env=ray_head.driver_env)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_the_ready_spec_of_batch_inference_keeps_what_is_right(folder):
    answers = [json.loads(line) for line in (folder / "runs" / "answers" / "output.jsonl").read_text().splitlines()]
    failed = [json.loads(line) for line in (folder / "runs" / "answers" / "output.errors.jsonl").read_text().splitlines()]
    assert len({record["row_id"] for record in answers + failed}) == len(answers + failed) == ROWS
    assert 20 < len(answers) < ROWS and all("dropped" in record for record in failed)
    assert all(record["reward"] == 1 and record["finish_reason"] == "stop" for record in answers)
    asked = [[message["content"] for message in record["messages"]] for record in answers]
    plain = [(eval(question), int(answer)) for question, answer in asked if re.fullmatch(r"-?\d+", answer)]  # not --6, or 1+5
    assert len(plain) > len(answers) / 2 and all(expected == answer for expected, answer in plain)


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
