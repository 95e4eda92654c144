"""Small real jobs for the integration tests, and running them as a user does: in a process of their own."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

MODEL = {
    "dtype": "float32",
    "random": {
        "characters": "0123456789+-",
        "config": {
            "model_type": "qwen3",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "max_position_embeddings": 128,
            "tie_word_embeddings": True,
        },
    },
}
DATA = {
    "sources": [
        {
            "type": "reasoning_gym",
            "task": "chain_sum",
            "size": 120,
            "options": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
            "prompt": "{expression}",
            "remove_prompt_spaces": True,
        }
    ],
    "held_out": 16,
    "max_prompt_tokens": 32,
    "max_tokens": 48,
}
LEARNER = {"gradient_checkpointing": "none", "micro_batch_tokens": 1024, "optimizer": {"learning_rate": 0.003}}


def sft_spec(**changes):
    return {
        "kind": "sft",
        "run": {"name": "warm", "save_every": 2},
        "model": MODEL,
        "data": DATA,
        "learner": LEARNER,
        "batch_size": 16,
        "steps": 6,
        **changes,
    }


def grpo_spec(**changes):
    return {
        "kind": "grpo",
        "run": {"name": "grpo", "save_every": 2, "log_completions_every": 2, "deterministic": True},
        "model": MODEL,
        "data": DATA,
        "learner": LEARNER,
        "rollout": {"num_generations": 4, "max_completion_tokens": 4},
        "rewards": [{"type": "plugin", "target": "digits.py:digits"}],
        "prompts_per_step": 8,
        "steps": 6,
        **changes,
    }


PLUGIN = """
import rlflow

@rlflow.reward
def digits(sample: rlflow.RewardSample) -> float:
    return sum(c.isdigit() for c in sample.completion) / 4
"""


def write_job(folder: Path, spec: dict) -> Path:
    (folder / "digits.py").write_text(PLUGIN)
    path = folder / f"{spec['run']['name']}.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def environment(**more):
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**env, "RAY_ADDRESS": "local", "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", **more}


def start(folder: Path, *arguments: str, env=None, module="rlflow.jobs.run") -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=folder,
        env=env or environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(folder: Path, *arguments: str, timeout_s: float = 500, **options) -> subprocess.CompletedProcess:
    process = start(folder, *arguments, **options)
    try:
        out, err = process.communicate(timeout=timeout_s)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def metrics(run_dir: Path) -> list[dict]:
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen, timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while not any(row["step"] >= step for row in metrics(run_dir)):
        assert process.poll() is None, f"the job ended early: {process.communicate()}"
        assert time.monotonic() < deadline, f"step {step} was not reached in {timeout_s} s"
        time.sleep(0.1)


def comparable(rows: list[dict]) -> list[dict]:
    """What does not depend on the time, nor on how often weights were sent."""
    times = ("time", "_seconds", "tokens_per_second")
    return [{k: v for k, v in row.items() if not k.endswith(times) and k != "weight_version"} for row in rows]


def assert_same_course(run: Path, uninterrupted: Path) -> None:
    """Every metric of every step, and nothing logged twice but what was superseded."""
    ours, theirs = metrics(run), metrics(uninterrupted)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for one, other in zip(comparable(ours), comparable(theirs), strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    assert len(list((run / "superseded").iterdir())) == 1


def leave_as_killed(folder: Path, spec: dict, name: str, *, step: int) -> Path:
    """A copy of a finished run as a kill at `step` would have left it: logged up to there, and no later checkpoint. Its spec."""
    finished, killed = folder / "runs" / spec["run"]["name"], folder / "runs" / name
    shutil.copytree(finished, killed, symlinks=True)
    (killed / "model").unlink()
    for checkpoint in (killed / "checkpoints").iterdir():
        if checkpoint.name > f"step-{step:06d}":
            shutil.rmtree(checkpoint)
    rows = (killed / "metrics.jsonl").read_text().splitlines(keepends=True)
    (killed / "metrics.jsonl").write_text("".join(rows[: step + 1]))
    for file, fields in (("status.json", {"state": "running"}), ("resolved.json", {})):
        document = json.loads((killed / file).read_text()) | fields
        if file == "resolved.json":
            document["spec"]["run"]["name"] = name
        (killed / file).write_text(json.dumps(document))
    return write_job(folder, {**spec, "run": {**spec["run"], "name": name}})
