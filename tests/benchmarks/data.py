"""Data for SFT: rows tokenised a second, and the share of padding without and with packing.

usage: python tests/benchmarks/data.py --model DIR [--rows 20000] [--batch-size 64] [--micro-batch-tokens 8192] [--out FILE]

Two data sets, by the chat template and the tokenizer of a model: made-up Alpaca rows (log-normal lengths, as in such data:
most are short), and the built-in rows of self-cognition. Rows are read, rendered, tokenised, weighed and written by one process.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import report

from rlflow.algorithms.batch_plan import padding_share
from rlflow.data.chat import load_tokenizer
from rlflow.data.order import RowOrder
from rlflow.data.sources import load_sources
from rlflow.data.tokenized import tokenize_conversations
from rlflow.loops.conversations import ConversationLengths, plan_conversations
from rlflow.spec.data import DataSpec
from rlflow.spec.learner import LearnerSpec

_MEDIAN_WORDS = {"instruction": 11, "input": 12, "output": 35}
_WORDS = ("the", "model", "answers", "a", "question", "about", "water", "light", "numbers", "history", "and", "music")
_SIGMA = 0.9
"""Of the logarithm of a text's number of words."""


def main() -> None:
    """Both data sets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, default=20000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--micro-batch-tokens", type=int, default=8192)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        file = write_alpaca(Path(directory) / "alpaca.jsonl", arguments.rows)
        identity = {"type": "self_cognition", "name": "Flow", "author": "the Brook team"}
        named = {"alpaca-like": str(file), "self-cognition": identity}
        results = [{"data": name, **measure(source, arguments, Path(directory))} for name, source in named.items()]
    report(f"{arguments.batch_size} rows a step, micro-batches of {arguments.micro_batch_tokens} tokens", results, arguments.out)


def write_alpaca(path: Path, count: int) -> Path:
    """Rows of random words; a third of them have an input."""
    generator = np.random.default_rng(0)
    with path.open("w") as file:
        for index in range(count):
            row = {name: _text(generator, median) for name, median in _MEDIAN_WORDS.items()}
            file.write(json.dumps(row if index % 3 == 0 else {**row, "input": ""}) + "\n")
    return path


def _text(generator: np.random.Generator, median: int) -> str:
    return " ".join(generator.choice(_WORDS, max(1, int(generator.lognormal(np.log(median), _SIGMA)))))


def measure(source: Any, arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Tokenise the rows once, then plan an epoch of steps."""
    spec = DataSpec.model_validate({"sources": [source], "max_tokens": 2048})
    tokenizer = load_tokenizer(arguments.model, spec)
    began = time.perf_counter()
    conversations = tokenize_conversations(load_sources(spec, directory), tokenizer, spec, directory)
    seconds = time.perf_counter() - began
    lengths = ConversationLengths(conversations.lengths, conversations.loss_weight_sums)
    return {
        "rows": len(conversations),
        "tokens a row": float(np.mean(lengths.tokens)),
        "longest": max(lengths.tokens),
        "rows/s": len(conversations) / seconds,
        "tokens/s": sum(lengths.tokens) / seconds,
        "padding without packing, %": 100 * _padding(lengths, arguments, packing=False),
        "with packing, %": 100 * _padding(lengths, arguments, packing=True),
    }


def _padding(lengths: ConversationLengths, arguments: argparse.Namespace, *, packing: bool) -> float:
    """Mean share over the steps of the first epoch."""
    learner = LearnerSpec(packing=packing, micro_batch_tokens=arguments.micro_batch_tokens)
    order = RowOrder(len(lengths.tokens), seed=0, shuffle=True)
    shares = []
    for start in range(0, len(lengths.tokens) - arguments.batch_size + 1, arguments.batch_size):
        rows = order.rows(start, arguments.batch_size)
        plan = plan_conversations(lengths, rows, learner)
        shares.append(padding_share(plan, [lengths.tokens[row] for row in rows], packing=packing))
    return float(np.mean(shares))


if __name__ == "__main__":
    main()
