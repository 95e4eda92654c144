"""Learning for real: GRPO on SmolLM2-135M-Instruct, no SFT, sums from reasoning-gym prepared as JSONL; held-out accuracy by time.

usage: python tests/benchmarks/learning.py prepare sums.jsonl
       python tests/benchmarks/learning.py run MODEL_DIRECTORY sums.jsonl RUNS_DIRECTORY [key=value ...]
       python tests/benchmarks/learning.py plot RUNS_DIRECTORY/learning/metrics.jsonl docs/learning.png
"""

import json
import subprocess
import sys
from pathlib import Path

PROMPT = "What is {expression}? Reply with only the number."


def prepare(file: str) -> None:
    """Write 4,000 different problems (run where reasoning-gym is installed)."""
    import reasoning_gym

    tasks = reasoning_gym.create_dataset("chain_sum", seed=0, size=6000, min_terms=2, max_terms=2, min_digits=1, max_digits=2)
    rows = {}
    for task in tasks:
        expression = task["metadata"]["expression"]
        prompt = PROMPT.format(expression=expression)
        rows[expression] = {"messages": [{"role": "user", "content": prompt}], "solution": task["answer"]}
    Path(file).write_text("".join(json.dumps(row) + "\n" for row in list(rows.values())[:4000]))


def run(model: str, file: str, runs: str, *overrides: str) -> None:
    """The job, as a user runs it."""
    spec = {
        "kind": "grpo",
        "run": {"name": "learning", "dir": runs, "save_every": 10**6},
        "model": {"path": model},
        "data": {"sources": [file], "max_prompt_tokens": 128, "held_out": 400},
        "rollout": {"num_generations": 16, "max_completion_tokens": 24, "max_num_seqs": 1024},
        "rewards": [{"type": "accuracy", "timeout_s": 5}],
        "reward_pool": {"num_workers": 6},
        "learner": {
            "micro_batch_tokens": 65536,
            "optimizer": {"learning_rate": 1e-5, "weight_decay": 0.0},
            "schedule": {"warmup_steps": 5},
        },
        "grpo": {"filter_zero_std": True},
        "prompts_per_step": 64,
        "steps": 60,
        "evaluate": {"every": 20},
    }
    path = Path(runs) / "learning.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(spec))
    subprocess.run([sys.executable, "-m", "rlflow.jobs.run", str(path), *overrides], check=True)


def plot(metrics: str, picture: str) -> None:
    """Held-out accuracy and training reward over the minutes since the first evaluation."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [json.loads(line) for line in Path(metrics).read_text().splitlines()]
    begin = rows[0]["time"]
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for name, label in {
        "reward_mean": "reward (training, sampled)",
        "eval_accuracy": "accuracy (400 held-out problems, sampled)",
    }.items():
        known = [row for row in rows if name in row]
        marker = "o" if name == "eval_accuracy" else ""
        axes.plot([(row["time"] - begin) / 60 for row in known], [row[name] for row in known], marker=marker, label=label)
    axes.set_xlabel("minutes")
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    axes.legend()
    axes.set_title("SmolLM2-135M-Instruct, GRPO on two-term sums, one H100")
    figure.tight_layout()
    figure.savefig(picture, dpi=150)


if __name__ == "__main__":
    {"prepare": prepare, "run": run, "plot": plot}[sys.argv[1]](*sys.argv[2:])
