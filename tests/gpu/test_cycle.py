"""Whole GRPO jobs on one GPU, engines and learner by turns and together, a reward model beside them."""

import json

import pytest

from tests.integration.job_runs import MODEL, metrics, run, write_job
from tests.unit.rewards.test_model import save


@pytest.mark.parametrize("residency", ["turns", "together"])
def test_a_job_samples_learns_and_syncs(tmp_path, residency):
    rows = ({"messages": [{"role": "user", "content": f"{i % 10}+{i // 10}"}]} for i in range(100))
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save(tmp_path / "reward")
    spec = {
        "kind": "grpo",
        "run": {"name": residency},
        "model": {**MODEL, "dtype": "bfloat16"},
        "data": {"sources": ["sums.jsonl"], "max_prompt_tokens": 32},
        "learner": {"micro_batch_tokens": 4096, "optimizer": {"learning_rate": 0.003}},
        "rollout": {"num_generations": 8, "max_completion_tokens": 4, "enforce_eager": True, "gpu_memory_utilization": 0.2},
        "rewards": [{"type": "plugin", "target": "digits.py:digits"}, {"type": "model", "path": "./reward", "weight": 0.0}],
        "residency": residency,
        "prompts_per_step": 32,
        "steps": 12,
    }
    done = run(tmp_path, write_job(tmp_path, spec), timeout_s=540)
    assert done.returncode == 0, done.stderr[-2000:]
    steps = metrics(tmp_path / "runs" / residency)
    assert steps[-1]["reward_mean"] > steps[0]["reward_mean"] + 0.1
    assert max(row["sampler_logprob_abs_diff_mean"] for row in steps) < 0.05
    sampling, learning = (steps[-1][f"gpu_memory_gib_{phase}"] for phase in ("sampling", "learning"))
    if residency == "turns":
        assert learning < sampling - 5, "the engine's cache is gone while the learner trains"
        assert {"sleep_seconds", "wake_seconds", "reload_seconds", "offload_seconds"} <= steps[-1].keys()
    else:
        assert abs(learning - sampling) < 5
