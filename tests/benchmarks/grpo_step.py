"""A GRPO step on one GPU: rlflow against TRL's GRPOTrainer (colocated vLLM, sleep mode, Liger), in one run.

usage: python tests/benchmarks/grpo_step.py --tokenizer DIR [--shape qwen3-0.6b] [--checkpointing full auto] [--peer] [--out FILE]
32 prompts x 8 completions x 512 tokens, one optimiser step a batch, random weights. Both sides use the same checkpointing
(`full`), no correction for the sampler's numerics and no reference model.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from common import free_port, random_model, report, run_part, shape_parser

WARM_UP = 2
REWARD = """import rlflow

@rlflow.reward
def parity(sample: rlflow.RewardSample) -> float:
    return float(sum(sample.completion_token_ids) % 2)
"""
PHASES = ("generate", "reward", "learn", "hand_over", "sync", "sleep", "reload", "offload", "wake", "idle")


def main() -> None:
    """Each side in a process of its own, then the table."""
    parser = shape_parser(__doc__, "qwen3-0.6b")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--completions", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--utilization", type=float, default=0.35, help="share of the GPU for TRL's vLLM")
    parser.add_argument("--checkpointing", nargs="*", default=["full", "auto"])
    parser.add_argument("--residency", nargs="+", default=["auto"])
    parser.add_argument("--micro-batch-tokens", type=int, default=32768)
    parser.add_argument("--peer", action="store_true", help="run TRL too")
    parser.add_argument("--part", help="internal: run one part here")
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(run_trl(arguments)))
        return
    prepare(arguments)
    results = []
    for residency in arguments.residency:
        for checkpointing in arguments.checkpointing:
            results.append(run_rlflow(arguments, residency, checkpointing))
            print(json.dumps(results[-1]), flush=True)
    if arguments.peer:
        names = (
            "shape",
            "tokenizer",
            "prompts",
            "completions",
            "tokens",
            "steps",
            "utilization",
            "scratch",
            "micro_batch_tokens",
        )
        words = [w for n in names for w in (f"--{n.replace('_', '-')}", str(getattr(arguments, n)))]
        results.append({"side": "trl", **run_part(__file__, [*words, "--part", "trl"])})
        print(json.dumps(results[-1]), flush=True)
    report(f"GRPO step, {arguments.shape}, median after {WARM_UP} steps, seconds", results, arguments.out)


def prepare(arguments: Any) -> None:
    """Prompts, reward and model; the model in a process of its own, which leaves the GPU again."""
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    (arguments.scratch / "rewards.py").write_text(REWARD)
    rows = ({"messages": [{"role": "user", "content": prompt}]} for prompt in prompts(arguments))
    (arguments.scratch / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def prompts(arguments: Any) -> list[str]:
    """Different ones of nearly equal length, enough for every step."""
    count = arguments.prompts * arguments.steps
    return [f"State the final answer to the following arithmetic problem: {100 + i} + {999 - i} - 7 =" for i in range(count)]


def run_rlflow(arguments: Any, residency: str, checkpointing: str) -> dict[str, Any]:
    """A whole job, as a user runs it."""
    spec = {
        "kind": "grpo",
        "run": {
            "name": f"step-{time.time_ns()}",
            "dir": str(arguments.scratch / "runs"),
            "log_completions_every": 0,
            "save_every": 10**6,
        },
        "model": {
            "path": random_model(
                arguments.shape, arguments.tokenizer, arguments.scratch / Path(arguments.shape).name.removesuffix(".json")
            )
        },
        "data": {"sources": [str(arguments.scratch / "prompts.jsonl")], "max_prompt_tokens": 64},
        "rollout": {
            "num_generations": arguments.completions,
            "max_completion_tokens": arguments.tokens,
        },
        "rewards": [{"type": "plugin", "target": f"{arguments.scratch}/rewards.py:parity"}],
        "reward_pool": {"num_workers": 2},
        "learner": {"micro_batch_tokens": arguments.micro_batch_tokens, "gradient_checkpointing": checkpointing},
        "residency": residency,
        "prompts_per_step": arguments.prompts,
        "steps": arguments.steps,
    }
    file = arguments.scratch / "step.yaml"
    file.write_text(json.dumps(spec))
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "rlflow.jobs.run", str(file)], check=False, stdout=sys.stderr)
    side = {"side": f"rlflow {residency} {checkpointing}", "whole_s": time.perf_counter() - begin}
    if done.returncode:
        return {**side, "error": f"exit code {done.returncode}"}
    run = Path(spec["run"]["dir"]) / spec["run"]["name"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steady = [row for row in rows if row["step"] > WARM_UP]
    return {
        **side,
        "step_s": statistics.median(row["step_seconds"] - row.get("checkpoint_seconds", 0.0) for row in steady),
        **{name: statistics.median(row.get(f"{name}_seconds", 0.0) for row in steady) for name in PHASES},
        "tokens": statistics.median(row["completion_tokens_mean"] for row in steady),
        "mismatch": statistics.median(row["sampler_logprob_abs_diff_mean"] for row in steady),
        **{name: max(row[name] for row in steady) for name in rows[-1] if name.startswith("gpu_memory")},
    }


def run_trl(arguments: Any) -> dict[str, float]:
    """TRL's trainer with its own step timing and profiling."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer
    from trl.generation.vllm_generation import VLLMGeneration

    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    model = random_model(
        arguments.shape, arguments.tokenizer, arguments.scratch / Path(arguments.shape).name.removesuffix(".json")
    )
    steps: list[dict[str, float]] = []

    def timed(owner: Any, method: str, name: str) -> None:
        """Count the time inside a method as `name` of the present step."""
        original = getattr(owner, method)

        def wrapper(*given: Any, **named: Any) -> Any:
            torch.cuda.synchronize()
            begin = time.perf_counter()
            try:
                return original(*given, **named)
            finally:
                torch.cuda.synchronize()
                steps[-1][name] = steps[-1].get(name, 0.0) + time.perf_counter() - begin

        setattr(owner, method, wrapper)

    timed(VLLMGeneration, "generate", "generate_with_wake")
    timed(VLLMGeneration, "sync_weights", "sync")
    timed(GRPOTrainer, "_prepare_inputs", "generate_and_score")
    timed(GRPOTrainer, "training_step", "training_steps")

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            torch.cuda.synchronize()
            steps.append({"step_s": -time.perf_counter()})

        def on_step_end(self, *_: Any, **__: Any) -> None:
            torch.cuda.synchronize()
            steps[-1]["step_s"] += time.perf_counter()

    def parity(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [float(sum(ids) % 2) for ids in completion_ids]

    per_device = max(1, arguments.micro_batch_tokens // (arguments.tokens + 64))
    total = arguments.prompts * arguments.completions
    per_device = max(d for d in range(1, per_device + 1) if total % d == 0)
    config = GRPOConfig(
        output_dir=str(arguments.scratch / "trl-grpo"),
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=total // per_device,
        num_generations=arguments.completions,
        max_completion_length=arguments.tokens,
        max_steps=arguments.steps,
        use_vllm=True,
        vllm_mode="colocate",
        vllm_enable_sleep_mode=True,
        vllm_gpu_memory_utilization=arguments.utilization,
        vllm_max_model_length=arguments.tokens + 64,
        vllm_importance_sampling_correction=False,
        use_liger_kernel=True,
        bf16=True,
        gradient_checkpointing=True,
        beta=0.0,
        temperature=1.0,
        learning_rate=1e-6,
        model_init_kwargs={"dtype": "bfloat16"},
        report_to=[],
        save_strategy="no",
        logging_steps=1,
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=parity,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": [[{"role": "user", "content": prompt}] for prompt in prompts(arguments)]}),
        processing_class=AutoTokenizer.from_pretrained(arguments.tokenizer, padding_side="left"),
        callbacks=[Clock()],
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "step" in entry][WARM_UP : arguments.steps]
    phases = {name: _median(steps[WARM_UP:], name) for name in steps[-1]}
    return {
        **phases,
        "learn": phases["training_steps"] - phases["generate_and_score"],
        "tokens": _median(logs, "completions/mean_length"),
        "mismatch": _median(logs, "sampling/sampling_logp_difference/mean"),
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
    }


def _median(entries: list[dict[str, Any]], name: str) -> float:
    values = [entry[name] for entry in entries if name in entry]
    return statistics.median(values) if values else float("nan")


if __name__ == "__main__":
    main()
