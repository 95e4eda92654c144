"""Whole jobs on the real engines: what they write, and that a killed driver loses nothing."""

import json
import os
import signal

import pytest

from tests.integration.job_runs import grpo_spec, metrics, run, sft_spec, start, wait_for_step, write_job

pytestmark = pytest.mark.integration
TIMES = ("time", "_seconds", "tokens_per_second")


def comparable(rows):
    return [{k: v for k, v in row.items() if not k.endswith(TIMES)} for row in rows]


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """An SFT warm start and GRPO on its model, run to the end."""
    folder = tmp_path_factory.mktemp("chain")
    model = {"from_run": "warm", "dtype": "float32"}
    result = run(folder, write_job(folder, sft_spec()), write_job(folder, grpo_spec(model=model)))
    assert result.returncode == 0, result.stdout + result.stderr
    return folder, result


def test_chain_writes_the_run_directory_of_the_design(chain):
    folder, _ = chain
    for name in ("warm", "grpo"):
        run_dir = folder / "runs" / name
        assert json.loads((run_dir / "status.json").read_text())["state"] == "succeeded"
        assert json.loads((run_dir / "resolved.json").read_text())["spec"]["run"]["name"] == name
        assert (run_dir / "report.html").stat().st_size > 10_000
        assert os.readlink(run_dir / "model") == "checkpoints/step-000006/model"
        assert sorted(p.name for p in (run_dir / "checkpoints").iterdir()) == ["step-000004", "step-000006"]
        assert [row["step"] for row in metrics(run_dir)] == [0, 1, 2, 3, 4, 5, 6]


def test_chain_prints_progress_lines_and_the_table(chain):
    _, result = chain
    assert "step 6/6" in result.stdout
    assert "held-out accuracy" in result.stdout
    assert "report.html" in result.stdout


def test_grpo_rows_hold_the_metrics_of_the_design(chain):
    folder, _ = chain
    row = metrics(folder / "runs" / "grpo")[3]
    expected = {
        "step", "epoch", "time", "loss", "grad_norm", "learning_rate", "reward_mean", "reward_std", "reward_digits_mean",
        "groups_zero_std_fraction", "completion_tokens_mean", "completion_clipped_fraction", "entropy_mean",
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
    assert len(completions) == 8 * 4
    logged = json.loads(completions[0])
    assert logged["rewards"].keys() == {"digits"} and logged["prompt"].startswith("<|im_start|>user")
    assert logged["weight_version"] == rows[2]["weight_version"]


def test_model_directory_loads_with_transformers(chain):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _ = chain
    model, info = AutoModelForCausalLM.from_pretrained(folder / "runs" / "grpo" / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(folder / "runs" / "grpo" / "model")
    assert tokenizer.chat_template and model.config.vocab_size == len(tokenizer)


def test_same_command_again_does_nothing_more(chain):
    folder, _ = chain
    before = metrics(folder / "runs" / "warm")
    result = run(folder, folder / "warm.yaml")
    assert result.returncode == 0
    assert metrics(folder / "runs" / "warm") == before


def test_other_spec_under_the_same_name_is_refused(chain):
    folder, _ = chain
    result = run(folder, folder / "warm.yaml", "steps=7")
    assert result.returncode == 2
    assert "run.name" in result.stderr and "steps" in result.stderr and len(result.stderr.splitlines()) == 1


def test_killed_driver_resumes_as_if_nothing_had_happened(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    assert run(whole, write_job(whole, grpo_spec())).returncode == 0
    path = write_job(killed, grpo_spec())
    process = start(killed, path)
    wait_for_step(killed / "runs" / "grpo", 3, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    result = run(killed, path)
    assert result.returncode == 0, result.stdout + result.stderr
    resumed, uninterrupted = metrics(killed / "runs" / "grpo"), metrics(whole / "runs" / "grpo")
    assert [row["step"] for row in resumed] == [row["step"] for row in uninterrupted]
    for one, other in zip(comparable(resumed), comparable(uninterrupted), strict=True):
        one.pop("weight_version", None), other.pop("weight_version", None)
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    versions = [row["weight_version"] for row in resumed if "weight_version" in row]
    assert versions == sorted(set(versions)), "a weight version was used twice"
    assert list((killed / "runs" / "grpo" / "superseded").iterdir())


def test_stopped_job_says_so_and_goes_on(tmp_path):
    path = write_job(tmp_path, sft_spec(steps=400))
    process = start(tmp_path, path)
    wait_for_step(tmp_path / "runs" / "warm", 3, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert json.loads((tmp_path / "runs" / "warm" / "status.json").read_text())["state"] == "stopped"
