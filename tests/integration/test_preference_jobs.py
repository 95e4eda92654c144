"""Whole jobs on preferences, with the ready specs: they learn what they should, and their models load."""

import json
from pathlib import Path

import pytest
import torch
import yaml

import rlflow
from tests.integration.job_runs import grpo_spec, metrics, run, write_job

pytestmark = pytest.mark.integration
ROOT = Path(rlflow.__file__).parents[1]
STORED_STEPS = 8
PAIR_METRICS = {"loss", "preference_accuracy", "reward_margin_mean", "rewards_chosen_mean", "rewards_rejected_mean"}


def ready_spec(kind, **changes):
    spec = yaml.safe_load((ROOT / "jobs" / "specs" / f"preference_{kind}.yaml").read_text())
    spec["data"]["sources"] = [str(ROOT / "jobs" / "specs" / "preferences.json")]
    return {**spec, **changes}


def stored_spec(kind):
    spec = ready_spec(kind, run={"name": f"stored_{kind}"}, steps=STORED_STEPS)
    spec[kind]["reference"] = "stored"
    return spec


def train(folder, head, *specs):
    result = run(folder, *(write_job(folder, spec) for spec in specs), env=head.driver_env)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory, ray_head):
    """Each ready spec, and some steps of two with a stored reference."""
    folder = tmp_path_factory.mktemp("ready")
    train(folder, ray_head, *map(ready_spec, ("dpo", "kto", "rm")), *map(stored_spec, ("dpo", "kto")))
    return folder


def rows_of(folder, name):
    return metrics(folder / "runs" / name)


@pytest.mark.parametrize("kind", ["dpo", "kto", "rm"])
def test_a_ready_spec_learns_the_preference(folder, kind):
    rows = rows_of(folder, f"preference_{kind}")
    first, last = rows[0], rows[-1]
    assert {name.removeprefix("eval_") for name in first} >= PAIR_METRICS
    assert first["step"] == 0 and first["eval_preference_accuracy"] < 0.9
    assert last["eval_preference_accuracy"] >= 0.95
    assert last["eval_reward_margin_mean"] > first["eval_reward_margin_mean"] + 0.5
    assert last["eval_loss"] < first["eval_loss"]
    assert last.keys() >= PAIR_METRICS
    assert ("kto_kl" in last) == (kind == "kto")


def test_at_the_start_policy_and_reference_are_the_same(folder):
    start = rows_of(folder, "preference_dpo")[0]
    assert start["eval_reward_margin_mean"] == pytest.approx(0, abs=1e-5)
    assert start["eval_loss"] == pytest.approx(0.693147, abs=1e-5)


def test_a_reward_model_loads_with_transformers(folder):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    run_dir = folder / "runs" / "preference_rm"
    model, info = AutoModelForSequenceClassification.from_pretrained(run_dir / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and model.config.num_labels == 1
    tokenizer = AutoTokenizer.from_pretrained(run_dir / "model")

    def score(answer):
        messages = [{"role": "user", "content": "20+31"}, {"role": "assistant", "content": answer}]
        ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            return float(model(**ids).logits)

    assert score("=51") > score("51")


@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_a_stored_reference_gives_the_same_training(folder, kind):
    stored, swapped = rows_of(folder, f"stored_{kind}"), rows_of(folder, f"preference_{kind}")
    assert len(stored) == STORED_STEPS + 1
    for ours, theirs in zip(stored, swapped, strict=False):
        assert ours.keys() >= PAIR_METRICS or ours["step"] == 0
        for name in PAIR_METRICS & ours.keys():
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-4), (ours["step"], name)


def test_a_reward_model_and_a_judge_reward_completions_beside_another_reward(folder, ray_head):
    """The reward model is an earlier run's; the judge, in an engine of its own, has a digit in nearly all of its answers."""
    judge = {
        "type": "judge",
        "engine": {"max_model_tokens": 64, "dtype": "float32"},
        "model": "runs/preference_dpo/model",
        "prompt": "{prompt}{completion}",
        "pattern": "([0-9])",
        "max_tokens": 6,
        "temperature": 1.0,
    }
    model_reward = {"type": "model", "from_run": "preference_rm"}
    rewards = [{"type": "plugin", "target": "digits.py:digits"}, model_reward, {**judge, "weight": 0.0}]
    model = {"path": str(folder / "runs" / "preference_rm" / "initial_model"), "dtype": "float32"}
    train(folder, ray_head, grpo_spec(rewards=rewards, reward_pool={"failure_threshold": 0.8}, model=model, steps=2))
    rows = rows_of(folder, "grpo")
    assert all({"reward_digits_mean", "reward_model_mean", "reward_judge_mean"} <= row.keys() for row in rows if row["step"])
    lines = (folder / "runs" / "grpo" / "completions" / "step-000002.jsonl").read_text().splitlines()
    judged = [value for line in lines if (value := json.loads(line)["rewards"]["judge"]) is not None]
    assert judged and set(judged) <= set(range(10))
