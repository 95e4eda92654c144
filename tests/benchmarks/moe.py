"""A training step of a mixture of experts on one GPU: grouped matrix products against eager experts, ZeRO-3, in one run.

usage: python tests/benchmarks/moe.py --tokenizer DIR [--out FILE]
1.9 B parameters: hidden 1,024, 12 layers, 128 experts of width 384, 8 a token; 8 rows of 1,024 tokens a step.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from common import lone_learner, random_model, random_rows, report, run_part
from sft import timed

SHAPE = {
    "model_type": "qwen3_moe",
    "vocab_size": 49152,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "moe_intermediate_size": 384,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "norm_topk_prob": True,
    "tie_word_embeddings": True,
}


def main() -> None:
    """Each implementation in a process of its own, then the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--ways", nargs="+", default=["grouped_mm", "eager"])
    parser.add_argument("--zero-stage", type=int, default=3)
    parser.add_argument("--scale", type=int, default=1, help="divides the number of experts and layers, for a dry run")
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/rlflow-benchmarks"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--part", help="internal: run one part here")
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(run(arguments)))
        return
    shared = ["--tokenizer", arguments.tokenizer, "--scratch", str(arguments.scratch)]
    shared += ["--zero-stage", str(arguments.zero_stage), "--scale", str(arguments.scale)]
    results = [{"experts": way, **run_part(__file__, [*shared, "--part", way])} for way in arguments.ways]
    report("mixture of experts, ZeRO-3, full checkpointing", results, arguments.out)


def run(arguments: Any) -> dict[str, float]:
    """Steps of the learner."""
    from rlflow.algorithms.losses import SmoothedCrossEntropy
    from rlflow.spec.learner import LearnerSpec
    from rlflow.spec.model import ModelSpec

    arguments.scratch.mkdir(parents=True, exist_ok=True)
    config = arguments.scratch / "moe.json"
    smaller = {name: SHAPE[name] // arguments.scale for name in ("num_experts", "num_hidden_layers")}
    config.write_text(json.dumps({**SHAPE, **smaller}))
    model = random_model(str(config), arguments.tokenizer, arguments.scratch / "moe")
    spec = LearnerSpec(zero_stage=arguments.zero_stage, micro_batch_tokens=8192, gradient_checkpointing="full")
    learner = lone_learner(ModelSpec(path=model, experts_implementation=arguments.part), spec)
    step, sequences = random_rows(8, 1024, micro_batch_tokens=8192)
    losses = []

    def train() -> None:
        losses.append(learner.train_step(step, sequences, SmoothedCrossEntropy(), learning_rate=1e-6)["loss"])

    return {"step_s": statistics.median(timed(train)), "first_loss": losses[0]}


if __name__ == "__main__":
    main()
