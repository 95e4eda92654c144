"""SFT throughput of one GPU: the learner on packed rows against TRL's SFTTrainer on the same tokens, in one run.

usage: python tests/benchmarks/sft.py --tokenizer DIR [--shape qwen3-1.7b] [--length 8192] [--out FILE] [--peer]
FLOPs = (6 x parameters in matrix products + causal attention inside segments) x tokens; recomputation not counted.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from common import (
    PEAK_TFLOPS,
    lone_learner,
    random_model,
    random_rows,
    report,
    run_part,
    seconds_of,
    shape_parser,
    training_flops_per_token,
    write_profile,
)

WARM_UP, TIMED = 2, 4


def main() -> None:
    """Parts in processes of their own, then the table."""
    parser = shape_parser(__doc__, "qwen3-1.7b")
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=4, help="rows of an optimiser step")
    parser.add_argument("--micro-batch-tokens", type=int, default=16384)
    parser.add_argument("--checkpointing", nargs="+", default=["none"])
    parser.add_argument("--liger", nargs="+", default=["auto"])
    parser.add_argument("--zero-stage", type=int, nargs="+", default=[3])
    parser.add_argument("--peer", action="store_true", help="run TRL too")
    parser.add_argument("--profile", type=Path, help="write where a step's time goes on the GPU")
    parser.add_argument("--part", help="internal: run one part here")
    arguments = parser.parse_args()
    if arguments.part:
        part = {"rlflow": run_rlflow, "trl": run_trl}[arguments.part]
        print(json.dumps(part(arguments)))
        return
    results = []
    for stage in arguments.zero_stage:
        for liger in arguments.liger:
            for checkpointing in arguments.checkpointing:
                own = {"--part": "rlflow", "--checkpointing": checkpointing, "--liger": liger, "--zero-stage": str(stage)}
                results.append(own | _run(arguments, own))
                print(results[-1], flush=True)
    if arguments.peer:
        results.append({"--part": "trl"} | _run(arguments, {"--part": "trl"}))
    report(f"SFT, {arguments.shape}, rows of {arguments.length} tokens", results, arguments.out)


def _run(arguments: Any, own: dict[str, str]) -> dict[str, Any]:
    shared = {
        "--shape": arguments.shape,
        "--tokenizer": arguments.tokenizer,
        "--length": arguments.length,
        "--rows": arguments.rows,
        "--micro-batch-tokens": arguments.micro_batch_tokens,
        "--scratch": arguments.scratch,
        **({"--profile": arguments.profile} if arguments.profile else {}),
    }
    return run_part(__file__, [str(word) for pair in (shared | own).items() for word in pair])


def run_rlflow(arguments: Any) -> dict[str, float]:
    """The learner alone, as its actor drives it."""
    import torch

    from rlflow.algorithms.losses import SmoothedCrossEntropy
    from rlflow.spec.learner import LearnerSpec
    from rlflow.spec.model import ModelSpec

    model = random_model(
        arguments.shape, arguments.tokenizer, arguments.scratch / Path(arguments.shape).name.removesuffix(".json")
    )
    spec = LearnerSpec(
        zero_stage=arguments.zero_stage[0],
        micro_batch_tokens=arguments.micro_batch_tokens,
        gradient_checkpointing=arguments.checkpointing[0],
        liger_kernel={"auto": "auto", "yes": True, "no": False}[arguments.liger[0]],
    )
    learner = lone_learner(ModelSpec(path=model), spec)
    step, sequences = random_rows(arguments.rows, arguments.length, arguments.micro_batch_tokens)

    def train() -> None:
        learner.train_step(step, sequences, SmoothedCrossEntropy(), learning_rate=1e-6)

    seconds = timed(train)
    result = throughput(model, arguments, seconds)
    if arguments.profile:
        write_profile(train, arguments.profile)
    if torch.cuda.is_available():
        result |= {
            "allocated_gib": torch.cuda.max_memory_allocated() / 2**30,
            "reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
        }
        for state in ("weights", "offloaded", "weights", "full", "weights", "offloaded", "full"):
            begin = time.perf_counter()
            learner.move(state)
            result[f"to_{state}_s"] = time.perf_counter() - begin
            result[f"{state}_gib"] = torch.cuda.memory_allocated() / 2**30
        for index in (0, 1):
            begin = time.perf_counter()
            for bucket in range(len(learner.exporter.buckets)):
                learner.exporter.write_bucket(bucket)
            result[f"export_{index}_s"] = time.perf_counter() - begin
        train()
    return result


def run_trl(arguments: Any) -> dict[str, float]:
    """TRL's SFTTrainer with Liger and gradient checkpointing on rows of the same length, unpacked."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    model_path = random_model(
        arguments.shape, arguments.tokenizer, arguments.scratch / Path(arguments.shape).name.removesuffix(".json")
    )
    times = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            torch.cuda.synchronize()
            times.append(-time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            torch.cuda.synchronize()
            times[-1] += time.perf_counter()

    rows = torch.randint(1000, 40000, (arguments.rows * (WARM_UP + TIMED), arguments.length))
    config = SFTConfig(
        output_dir=str(arguments.scratch / "trl-sft"),
        per_device_train_batch_size=arguments.rows,
        max_steps=WARM_UP + TIMED,
        bf16=True,
        use_liger_kernel=True,
        gradient_checkpointing=True,
        max_length=arguments.length,
        report_to=[],
        save_strategy="no",
        logging_steps=1000,
    )
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.bfloat16, attn_implementation="sdpa")
    trainer = SFTTrainer(model, args=config, train_dataset=Dataset.from_dict({"input_ids": rows.tolist()}), callbacks=[Clock()])
    trainer.train()
    result = throughput(model_path, arguments, times[WARM_UP:])
    return result | {"reserved_gib": torch.cuda.max_memory_reserved() / 2**30}


def timed(step: Any) -> list[float]:
    """Seconds of each timed call."""
    return [seconds_of(step) for _ in range(WARM_UP + TIMED)][WARM_UP:]


def throughput(model: str, arguments: Any, seconds: list[float]) -> dict[str, float]:
    """Tokens and FLOPs a second of the median step."""
    step = statistics.median(seconds)
    rate = arguments.rows * arguments.length / step
    tflops = rate * training_flops_per_token(model, arguments.length) / 1e12
    return {"step_s": step, "tokens_per_s": rate, "tflops": tflops, "mfu": tflops / PEAK_TFLOPS}


if __name__ == "__main__":
    main()
