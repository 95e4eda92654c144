"""The quickstart, over seeds: accuracies, mismatch, idle time and durations, as a table and as JSON.

usage: python tests/benchmarks/quickstart.py [--seeds 0 1 2] [--out FILE] [key=value ...]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

SPECS = ["jobs/specs/quickstart_sft.yaml", "jobs/specs/quickstart_grpo.yaml"]
FIRST_STEADY_STEP = 6


def main() -> None:
    """Run every seed in a folder of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            results.append(run_seed(seed, Path(folder) / str(seed), arguments.overrides))
            print(json.dumps(results[-1]), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2))
    Console().print(table(results))


def run_seed(seed: int, folder: Path, overrides: list[str]) -> dict[str, float]:
    """One run of both specs, and what it gave."""
    begin = time.time()
    command = [sys.executable, "-m", "rlflow.jobs.run", *SPECS, f"run.dir={folder}", f"run.seed={seed}", *overrides]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    sft, grpo = rows(folder / "quickstart_sft"), rows(folder / "quickstart_grpo")
    evaluations = [row["eval_accuracy"] for row in grpo if "eval_accuracy" in row]
    steady = [row for row in grpo if row["step"] >= FIRST_STEADY_STEP]
    return {
        "seed": seed,
        "before": sft[0]["eval_accuracy"],
        "after_sft": evaluations[0],
        "after_grpo": evaluations[-1],
        "gain": evaluations[-1] - evaluations[0],
        "logprob_abs_diff": statistics.fmean(row["sampler_logprob_abs_diff_mean"] for row in steady),
        "step_s": statistics.median(row["step_seconds"] for row in steady),
        "idle_s": statistics.median(row["idle_seconds"] for row in steady),
        "total_s": time.time() - begin,
    }


def rows(run_dir: Path) -> list[dict[str, float]]:
    """Metrics of a run."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def table(results: list[dict[str, float]]) -> Table:
    """One row a seed."""
    shown = Table(*results[0])
    for result in results:
        shown.add_row(*(f"{value:.4g}" for value in result.values()))
    return shown


if __name__ == "__main__":
    main()
