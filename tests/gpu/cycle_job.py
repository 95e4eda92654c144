"""A small GRPO job whose reward a few steps raise."""

import json
from pathlib import Path
from typing import Any

from tests.integration.job_runs import MODEL, metrics, run, write_job
from tests.unit.rewards.test_model import save


def run_cycle(folder: Path, residency: str, *, num_ranks: int = 1, **rollout: Any) -> list[dict[str, Any]]:
    """The metrics of each step of a job in `folder` that improved, with a reward model beside the learner."""
    rows = ({"messages": [{"role": "user", "content": f"{i % 10}+{i // 10}"}]} for i in range(100))
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save(folder / "reward")
    spec = {
        "kind": "grpo",
        "run": {"name": residency},
        "model": {**MODEL, "dtype": "bfloat16"},
        "data": {"sources": ["sums.jsonl"], "max_prompt_tokens": 32},
        "learner": {"num_ranks": num_ranks, "micro_batch_tokens": 4096, "optimizer": {"learning_rate": 0.003}},
        "rollout": {
            "num_generations": 8,
            "max_completion_tokens": 4,
            "enforce_eager": True,
            "gpu_memory_utilization": 0.2,
            **rollout,
        },
        "rewards": [{"type": "plugin", "target": "digits.py:digits"}, {"type": "model", "path": "./reward", "weight": 0.0}],
        "residency": residency,
        "prompts_per_step": 32,
        "steps": 12,
    }
    done = run(folder, write_job(folder, spec), timeout_s=540)
    assert done.returncode == 0, done.stderr[-2000:]
    steps = metrics(folder / "runs" / residency)
    assert steps[-1]["reward_mean"] > steps[0]["reward_mean"] + 0.1
    assert max(row["sampler_logprob_abs_diff_mean"] for row in steps) < 0.05
    return steps
