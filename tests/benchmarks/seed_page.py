"""Every command of the Qwen3 page of ms-swift, converted and really run: tiny models, some rows, the processor.

usage: python -m tests.benchmarks.seed_page [NAME…] [--folder DIR] [--out FILE]

Prints a table: the command, what ran, how it ended, seconds. NAMEs choose commands (those that need the adapters of
`self_awareness` need its run in the folder). Below the page's own commands are the ways through the same code that it does not
take: adapters in batch inference, the best of several answers, GRPO with spread experts.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rlflow.convert.convert import convert
from tests.benchmarks.common import report
from tests.benchmarks.seed_page_scale import write_all
from tests.unit.jobs.hub_server import hub_server

COMMANDS = Path(__file__).parents[1] / "unit" / "convert" / "commands"
TOKEN = "hf_of_the_stand_in"
Result = subprocess.CompletedProcess[str]
Ran = tuple[Result, Callable[[], str]]
"""A command that has ended, and what to tell of it if it went well."""

JOBS: dict[str, tuple[str, ...]] = {
    "distill": (
        "model.path=dense",
        "data.sources=[alpaca_en.jsonl#10, alpaca_zh.jsonl#10]",
        "data.max_prompt_tokens=256",
        "rollout.max_completion_tokens=16",
        "rollout.tensor_parallel_size=1",
    ),
    "self_awareness": (
        "model.path=dense",
        "data.sources=[mixin.jsonl#20, 'self_cognition:qwen3#12']",
        "data.max_tokens=1024",
    ),
    "full_sft": (
        "model.path=dense",
        "data.sources=[alpaca_en.jsonl, mixin.jsonl]",
        "data.max_tokens=256",
        "learner.num_ranks=2",
        "learner.micro_batch_tokens=512",
        "learner.liger_kernel=false",
        "evaluate.every=5",
        "epochs=2",
    ),
    "grpo": (
        "model.path=dense",
        "data.sources=numina.jsonl#5",
        "data.max_prompt_tokens=128",
        "learner.num_ranks=2",
        "learner.micro_batch_tokens=512",
        "rollout.num_workers=1",
        "rollout.max_completion_tokens=24",
        # A model with random weights ends no turn and solves nothing: vowels end one, and letters are rewarded too.
        "rollout.stop=[a, e, i, o, u]",
        "rewards=[{type: accuracy}, {type: plugin, target: 'letters.py:letters'}]",
    ),
    "megatron": (
        "model.path=experts",
        "data.sources=mixin.jsonl",
        "data.max_tokens=256",
        "learner.num_ranks=2",
        "learner.expert_parallel=2",
        "learner.micro_batch_tokens=512",
        "evaluate.every=2",
        "steps=4",
    ),
}
"""Commands that become a spec, and what of it is made smaller."""


@dataclass(frozen=True, slots=True)
class Page:
    """The folder in which everything runs."""

    folder: Path
    hub: str = ""
    """Address of the stand-in for a hub."""
    cluster: Mapping[str, str] = field(default_factory=dict)
    """Environment of a driver on a Ray that runs already; each command starts its own otherwise."""

    def rlflow(self, *words: str, text: str = "") -> Result:
        """A command of rlflow, as in a shell."""
        hub = {"HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}  # the stand-in has plain LFS alone
        hub |= {"HF_ENDPOINT": self.hub} if self.hub else {}
        variables = {"PYTHONPATH": os.getcwd(), "RAY_AUTH_MODE": "disabled", **hub, **self.cluster}
        known = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        command = [sys.executable, "-m", "rlflow.cli", *words]
        return subprocess.run(
            command, cwd=self.folder, env=known | variables, input=text, capture_output=True, text=True, timeout=600, check=False
        )

    def job(self, name: str, document: dict[str, Any], overrides: Sequence[str]) -> Result:
        """Run a spec under its own name; the page has two with the same."""
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
        return self.rlflow("run", f"{name}.yaml", f"run.name={name}", "run.dir=output", *overrides)

    def rows(self, path: str) -> list[dict[str, Any]]:
        """Of a .jsonl file."""
        return [json.loads(line) for line in (self.folder / path).read_text(encoding="utf-8").splitlines()]

    @property
    def adapter(self) -> str:
        """What `self_awareness` has trained."""
        [*_, latest] = sorted(self.folder.glob("output/self_awareness/checkpoints/*/adapter"))
        return str(latest.relative_to(self.folder))


# ---- commands of the page


def run_job(page: Page, name: str) -> Ran:
    """A command that becomes a spec."""
    document: Any = convert((COMMANDS / f"{name}.sh").read_text(encoding="utf-8")).result
    done = page.job(name, document, JOBS[name])
    return done, lambda: _told_of_job(page, name)


def _told_of_job(page: Page, name: str) -> str:
    if name == "distill":
        return f"{len(page.rows('distill_dataset.jsonl'))} of 20 rows answered"
    logged = page.rows(f"output/{name}/metrics.jsonl")
    shown = ("loss", "reward_mean", "eval_loss", "sampler_logprob_abs_diff_mean")
    last = {key: value for row in logged for key, value in row.items() if key in shown and value is not None}
    return f"{logged[-1]['step']} steps; " + ", ".join(f"{key} {value:.3g}" for key, value in last.items())


def chat(page: Page, name: str) -> Ran:
    """A conversation through a pipe, as the page shows it."""
    short = {"<model>": "dense", "Qwen/Qwen3-8B": "dense", "output/vx-xxx/checkpoint-xxx": "", "2048": "16", "8192": "512"}
    words = [short.get(word, word) or page.adapter for word in converted_words(name)]
    done = page.rlflow(*words[1:], text="who are you?\nclear\nwho are you? /no_think\n")
    return done, lambda: f"answers: {done.stdout[:60]!r} …"


def export(page: Page, name: str) -> Ran:
    """Merging, or pushing to the stand-in."""
    words = [word.replace("output/checkpoint-xxx", page.adapter, 1) for word in converted_words(name)]
    words = ["me/robot" if word == "<hub-model-id>" else "huggingface" if word == "modelscope" else word for word in words]
    words[words.index("--output") + 1] = name
    done = page.rlflow(*words[1:])
    return done, lambda: " ".join(" ".join(done.stdout.splitlines()[-2:]).split())


def converted_words(name: str) -> list[str]:
    """The `rlflow` command that a command of the page becomes."""
    words = convert((COMMANDS / f"{name}.sh").read_text(encoding="utf-8")).result
    assert isinstance(words, list)
    return words


# ---- beside the page


def infer_with_adapter(page: Page, name: str) -> Ran:
    """Batch inference with adapters merged first."""
    flags = ("--adapter", "self_awareness", "--runs", "output", "--data", "alpaca_en.jsonl#4", "--max-tokens", "8")
    done = page.rlflow("infer", "dense", *flags, "--output", f"{name}.jsonl", "rollout.max_num_seqs=8")
    return done, lambda: f"{len(page.rows(f'{name}.jsonl'))} of 4 rows answered"


def best_of(page: Page, name: str) -> Ran:
    """Rejection sampling: the best of four answers by a reward."""
    document = {
        "kind": "infer",
        "model": {"path": "dense"},
        "data": {"sources": ["numina.jsonl#6"]},
        "rollout": {"max_completion_tokens": 12, "max_num_seqs": 8, "temperature": 1.0},
        "infer": {"output": f"{name}.jsonl", "num_samples": 4, "keep": "best"},
        "rewards": [{"type": "plugin", "target": "letters.py:letters"}, {"type": "accuracy"}],
    }
    done = page.job(name, {**document, "run": {"name": name}}, ())
    return done, lambda: f"6 rows, best rewards {[round(row['reward'], 2) for row in page.rows(f'{name}.jsonl')]}"


def grpo_with_spread_experts(page: Page, name: str) -> Ran:
    """Experts of two ranks, sent to an engine that holds them all."""
    document: Any = convert((COMMANDS / "grpo.sh").read_text(encoding="utf-8")).result
    document["model"]["path"] = "experts"
    document["learner"]["expert_parallel"] = 2
    done = page.job(name, document, (*JOBS["grpo"][1:], "rollout.top_p=1", "rollout.top_k=0"))
    return done, lambda: _told_of_job(page, name)


STEPS: dict[str, Callable[[Page, str], Ran]] = {
    "chat_thinking": chat,
    "chat_no_thinking": chat,
    "distill": run_job,
    "self_awareness": run_job,
    "chat_adapter": chat,
    "merge": export,
    "push": export,
    "full_sft": run_job,
    "grpo": run_job,
    "megatron": run_job,
    "infer_with_adapter": infer_with_adapter,
    "best_of": best_of,
    "grpo_with_spread_experts": grpo_with_spread_experts,
}


def main() -> None:
    """Every step, or those that are named; exit code 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*STEPS, []], metavar="NAME")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="seed-page-"))
    if not (folder / "numina.jsonl").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_all(folder)
    with hub_server(TOKEN) as hub:
        page = Page(folder.absolute(), hub.url)
        results = [run_step(page, name) for name in arguments.names or STEPS]
    report("the seed page at a small scale", results, arguments.out)
    sys.exit(any(result["exit code"] for result in results))


def run_step(page: Page, name: str) -> dict[str, Any]:
    """A row of the table; what a failed command said goes to stderr."""
    begin = time.perf_counter()
    done, tell = STEPS[name](page, name)
    if done.returncode:
        print(name, done.stdout, done.stderr, sep="\n", file=sys.stderr)
    return {
        "command": name,
        "ran": " ".join(map(str, done.args[3:]))[:90],
        "result": tell() if done.returncode == 0 else "failed",
        "exit code": done.returncode,
        "seconds": round(time.perf_counter() - begin, 1),
    }


if __name__ == "__main__":
    main()
