"""Whole jobs on preferences, with the ready specs: they learn what they should, and their models load."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
import yaml

import rlflow
from tests.integration.job_runs import grpo_spec, metrics, run, start, wait_for_step, write_job
from tests.integration.watching import watcher

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


JUDGE = {
    "type": "judge",
    "engine": {"max_model_tokens": 64, "dtype": "float32"},
    "model": "runs/preference_dpo/model",
    "prompt": "{prompt}{completion}",
    "pattern": "([0-9])",
    "max_tokens": 6,
    "temperature": 1.0,
    "backoff_s": 0.1,
    "weight": 0.0,
}
"""In an engine of its own; nearly all of its answers have a digit."""


def test_a_reward_model_and_a_judge_reward_completions_though_the_judge_dies(folder, ray_head):
    """The reward model is an earlier run's. The judge's engine is killed twice; once is allowed."""
    spec = grpo_spec(
        run={"name": "judged", "save_every": 1000, "log_completions_every": 1, "max_restarts": 1},
        model={"path": str(folder / "runs" / "preference_rm" / "initial_model"), "dtype": "float32"},
        rewards=[{"type": "plugin", "target": "digits.py:digits"}, {"type": "model", "from_run": "preference_rm"}, JUDGE],
        reward_pool={"failure_threshold": 0.8},
        steps=1000,
    )
    process, run_dir = start(folder, write_job(folder, spec), env=ray_head.driver_env), folder / "runs" / "judged"
    try:
        with watcher(ray_head, "judged") as look:
            wait_for_step(run_dir, 2, process)
            killed_after = kill_judge(look, run_dir)
            wait_for_step(run_dir, killed_after + 2, process)
            kill_judge(look, run_dir)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1
    assert "the engine of judge-0 died" in out and "judge-0 started again after" in out
    assert "judges died more often than run.max_restarts allows; the last one with: The actor died" in err
    rows = rows_of(folder, "judged")
    assert all({"reward_digits_mean", "reward_model_mean", "reward_judge_mean"} <= row.keys() for row in rows if row["step"])
    for row in rows[1:]:
        lines = (run_dir / "completions" / f"step-{row['step']:06d}.jsonl").read_text().splitlines()
        for line in map(json.loads, lines):
            judged = line["rewards"]["judge"]
            assert judged in range(10) or (judged is None and "does not match the pattern" in line["error"]), (
                "lost with the engine"
            )


def kill_judge(look, run_dir) -> int:
    """Its process, at once; the last step before."""
    [pid] = [pid for name, (_, pid) in look()["actors"].items() if name.startswith("judged/judge-0")]
    os.kill(pid, signal.SIGKILL)
    return metrics(run_dir)[-1]["step"]
