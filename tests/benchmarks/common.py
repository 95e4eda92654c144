"""What the benchmarks share: random models of a shape, FLOP counts, running parts in processes of their own, tables."""

import argparse
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

PEAK_TFLOPS = 989.0
"""Dense bfloat16 peak of an H100 SXM (data sheet)."""


def shape_parser(description: str | None, shape: str) -> argparse.ArgumentParser:
    """What benchmarks of random models are told: the shape (with this default), its tokenizer, and where to write."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--shape", default=shape)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/rlflow-benchmarks"))
    parser.add_argument("--out", type=Path)
    return parser


def random_model(shape: str, tokenizer: str, directory: Path) -> str:
    """A model directory with random bfloat16 weights of a packaged shape (or a config.json), made once, by another process."""
    if not (directory / "config.json").is_file():
        subprocess.run([sys.executable, __file__, shape, tokenizer, str(directory)], check=True, stdout=sys.stderr)
    return str(directory)


def write_random_model(shape: str, tokenizer: str, directory: str) -> None:
    """Write it, from the GPU's random numbers if there is one: those of a processor take 10 s for 1 B parameters."""
    import torch
    from transformers import AutoTokenizer

    from rlflow.learner.load_model import create_random_model
    from rlflow.spec.model import RandomModelSpec

    spec = RandomModelSpec(config=shape, tokenizer=tokenizer)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    create_random_model(spec, "bfloat16", AutoTokenizer.from_pretrained(tokenizer), Path(directory), device)


def free_port() -> int:
    """A port of this machine for a rendezvous."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        return held.getsockname()[1]


def lone_learner(model: Any, spec: Any) -> Any:
    """A learner of one rank, of a `ModelSpec` and a `LearnerSpec`."""
    from rlflow.learner.learner import Learner
    from rlflow.learner.process_group import RankInfo

    return Learner(model.path, model, spec, RankInfo(0, 1, "127.0.0.1", free_port()))


def random_rows(count: int, length: int, micro_batch_tokens: int) -> tuple[Any, dict[int, Any]]:
    """The plan of an optimiser step on packed sequences of random tokens, each trained and of the same weight; and these."""
    import numpy as np

    from rlflow.algorithms.batch_plan import plan_step
    from rlflow.learner.sequences import TrainSequence

    generator, rows = np.random.default_rng(0), range(count)
    sequences = {i: TrainSequence(generator.integers(1000, 40000, length), np.ones(length, np.float32)) for i in rows}
    weights = dict.fromkeys(rows, 1 / (length * count))
    budget = micro_batch_tokens
    return plan_step(list(rows), [length] * count, weights, num_ranks=1, micro_batch_tokens=budget, packing=True), sequences


def seconds_of(work: Callable[[], Any]) -> float:
    """Seconds of all of it, on the GPU too if there is one."""
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    begin = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - begin


def training_flops_per_token(model: str, length: int) -> float:
    """6 x parameters in matrix products + causal attention inside segments of `length` tokens; recomputation not counted."""
    config = json.loads((Path(model) / "config.json").read_text())
    hidden, layers, heads = config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]
    queries, keys = heads * config["head_dim"], config["num_key_value_heads"] * config["head_dim"]
    layer = hidden * (2 * queries + 2 * keys) + 3 * hidden * config["intermediate_size"]
    return 6 * (layers * layer + hidden * config["vocab_size"]) + 6 * layers * queries * length


def run_part(script: str, arguments: Sequence[str], timeout_s: float = 600) -> dict[str, Any]:
    """Run `script` with `--part` arguments in a process of its own; its last line of output is JSON."""
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=timeout_s, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        return {"error": f"exit code {done.returncode}"}
    return json.loads(lines[-1])


def write_profile(work: Callable[[], None], file: Path) -> None:
    """What `work` spends its time on, kernels of the GPU and operations of the processor, as tables."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        work()
    averages = profiler.key_averages()
    orders = ("self_cuda_time_total", "self_cpu_time_total")
    tables = [averages.table(sort_by=order, row_limit=40, max_name_column_width=90) for order in orders]
    file.write_text("\n\n".join(tables))


def report(title: str, results: Sequence[dict[str, Any]], out: Path | None) -> None:
    """Print a table, one row a result, and write the same as JSON."""
    names = list(dict.fromkeys(name for result in results for name in result))
    table = Table(*names, title=title)
    for result in results:
        table.add_row(*(_cell(result.get(name)) for name in names))
    Console(width=200).print(table)
    if out:
        out.write_text(json.dumps(list(results), indent=2))


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    write_random_model(*sys.argv[1:])
