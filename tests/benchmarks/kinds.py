"""Every ready spec of a tiny model as it is shipped: what it improves, and the time of a step.

usage: python tests/benchmarks/kinds.py [--out FILE] [key=value ...]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from common import report

CHAINS = (
    ("quickstart_sft", "quickstart_grpo", "quickstart_ppo", "quickstart_gkd"),
    ("dapo",),
    ("preference_dpo",),
    ("preference_kto",),
    ("preference_rm",),
)


def main() -> None:
    """Run them one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for names in CHAINS:
            specs = [f"jobs/specs/{name}.yaml" for name in names]
            command = [sys.executable, "-m", "rlflow.jobs.run", *specs, f"run.dir={folder}", *arguments.overrides]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            for name in names:
                results.append({"spec": name, **figures(Path(folder) / name)})
                print(json.dumps(results[-1]), flush=True)
    report("ready specs", results, arguments.out)


def figures(run: Path) -> dict[str, Any]:
    """First and last evaluation, and the median step without evaluations."""
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in steps if row["step"] > 0]
    evaluations = [row for row in steps if any(name.startswith("eval_") for name in row)]
    names = [name for name in evaluations[-1] if name.startswith("eval_")]
    changes = {name: f"{evaluations[0].get(name, float('nan')):.3g} -> {evaluations[-1][name]:.3g}" for name in names}
    plain = [row["step_seconds"] for row in trained[5:] if row not in evaluations]
    return {
        "steps": len(trained),
        "step_s": statistics.median(plain),
        "seconds": steps[-1]["time"] - steps[0]["time"],
        "changes": ", ".join(f"{name.removeprefix('eval_')} {change}" for name, change in changes.items()),
    }


if __name__ == "__main__":
    main()
