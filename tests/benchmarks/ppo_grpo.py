"""PPO and GRPO on the quickstart's task, from the same warm starts: held-out accuracy against steps and seconds, over seeds.

usage: python tests/benchmarks/ppo_grpo.py run RUNS_DIRECTORY [--seeds 0 1 2] [key=value ...]
       python tests/benchmarks/ppo_grpo.py plot RUNS_DIRECTORY docs/ppo_grpo.png       (needs matplotlib)
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

SPECS = [f"jobs/specs/quickstart_{kind}.yaml" for kind in ("sft", "grpo", "ppo")]
COLOURS = {"grpo": "tab:blue", "ppo": "tab:orange"}


def main() -> None:
    """Run, or draw what was run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run", "plot"])
    parser.add_argument("runs", type=Path)
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    if arguments.what == "plot":
        plot(arguments.runs, arguments.rest[0])
        return
    for seed in arguments.seeds:
        every = "evaluate.every=15"
        command = [sys.executable, "-m", "rlflow.jobs.run", *SPECS, f"run.dir={arguments.runs}/{seed}", f"run.seed={seed}", every]
        subprocess.run([*command, *arguments.rest], check=True, stdout=subprocess.DEVNULL)
        for kind in COLOURS:
            print(json.dumps({"seed": seed, "kind": kind, **figures(rows(arguments.runs / str(seed) / f"quickstart_{kind}"))}))


def rows(run_dir: Path) -> list[dict[str, float]]:
    """Metrics of a run."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def figures(steps: list[dict[str, float]]) -> dict[str, float]:
    """What a run came to."""
    accuracies = [row["eval_accuracy"] for row in steps if "eval_accuracy" in row]
    return {
        "before": accuracies[0],
        "after": accuracies[-1],
        "step_s": statistics.median(row["step_seconds"] for row in steps[5:] if "eval_accuracy" not in row),
        "seconds": steps[-1]["time"] - steps[0]["time"],
    }


def plot(runs: Path, picture: str) -> None:
    """A line a run, evaluations only."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (by_step, by_time) = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for kind, colour in COLOURS.items():
        for number, folder in enumerate(sorted(runs.glob(f"*/quickstart_{kind}"))):
            steps = rows(folder)
            evaluated = [row for row in steps if "eval_accuracy" in row]
            accuracies = [row["eval_accuracy"] for row in evaluated]
            label = {"label": kind.upper()} if number == 0 else {}
            by_step.plot([row["step"] for row in evaluated], accuracies, color=colour, **label)
            by_time.plot([row["time"] - steps[0]["time"] for row in evaluated], accuracies, color=colour, **label)
    by_step.set_xlabel("steps of 256 completions")
    by_time.set_xlabel("seconds")
    by_step.set_ylabel("held-out accuracy, sampled")
    for axes in (by_step, by_time):
        axes.set_ylim(0.4, 1)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.tight_layout()
    figure.savefig(picture, dpi=130)


if __name__ == "__main__":
    main()
