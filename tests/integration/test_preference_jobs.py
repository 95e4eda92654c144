"""Whole jobs on preferences, with the ready specs: they learn what they should, and their models load."""

from pathlib import Path

import pytest
import torch
import yaml

import rlflow
from tests.integration.job_runs import grpo_spec, metrics, run, write_job

pytestmark = pytest.mark.integration
ROOT = Path(rlflow.__file__).parents[1]
PAIR_METRICS = {"loss", "preference_accuracy", "reward_margin_mean", "rewards_chosen_mean", "rewards_rejected_mean"}


def ready_spec(kind, **changes):
    spec = yaml.safe_load((ROOT / "jobs" / "specs" / f"preference_{kind}.yaml").read_text())
    spec["data"]["sources"] = [str(ROOT / "jobs" / "specs" / "preferences.json")]
    return {**spec, **changes}


def train(folder, spec):
    result = run(folder, write_job(folder, spec))
    assert result.returncode == 0, result.stdout + result.stderr
    return metrics(folder / "runs" / spec["run"]["name"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Each ready spec, run when it is first asked for."""
    folder, known = tmp_path_factory.mktemp("ready"), {}

    def look_up(kind):
        if kind not in known:
            known[kind] = train(folder, ready_spec(kind))
        return known[kind], folder / "runs" / f"preference_{kind}"

    return look_up


@pytest.mark.parametrize("kind", ["dpo", "kto", "rm"])
def test_a_ready_spec_learns_the_preference(runs, kind):
    rows, _ = runs(kind)
    first, last = rows[0], rows[-1]
    assert {name.removeprefix("eval_") for name in first} >= PAIR_METRICS
    assert first["step"] == 0 and first["eval_preference_accuracy"] < 0.9
    assert last["eval_preference_accuracy"] >= 0.95
    assert last["eval_reward_margin_mean"] > first["eval_reward_margin_mean"] + 0.5
    assert last["eval_loss"] < first["eval_loss"]
    assert last.keys() >= PAIR_METRICS
    assert ("kto_kl" in last) == (kind == "kto")


def test_at_the_start_policy_and_reference_are_the_same(runs):
    start = runs("dpo")[0][0]
    assert start["eval_reward_margin_mean"] == pytest.approx(0, abs=1e-5)
    assert start["eval_loss"] == pytest.approx(0.693147, abs=1e-5)


def test_a_reward_model_loads_with_transformers(runs):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    _, run_dir = runs("rm")
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
def test_a_stored_reference_gives_the_same_training(runs, tmp_path, kind):
    swapped, _ = runs(kind)
    spec = ready_spec(kind)
    spec[kind]["reference"] = "stored"
    stored = train(tmp_path, spec)
    for ours, theirs in zip(stored, swapped, strict=True):
        for name in PAIR_METRICS & ours.keys():
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-4), (ours["step"], name)


def test_a_reward_model_rewards_completions_beside_another_reward(runs, tmp_path):
    _, run_dir = runs("rm")
    rewards = [{"type": "plugin", "target": "digits.py:digits"}, {"type": "model", "path": str(run_dir / "model")}]
    rows = train(tmp_path, grpo_spec(rewards=rewards, model=ready_spec("rm")["model"], steps=2))
    assert all({"reward_digits_mean", "reward_model_mean"} <= row.keys() for row in rows if row["step"])
    last = rows[-1]
    assert last["reward_mean"] == pytest.approx(last["reward_digits_mean"] + last["reward_model_mean"], abs=1e-5)
