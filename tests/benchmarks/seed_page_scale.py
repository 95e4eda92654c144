"""What stands in for the models and data sets of the seed page: tiny random models, and small files of rows of the same shape."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.integration.job_runs import MODEL

CHARACTERS = "".join(map(chr, range(32, 127)))
DENSE: dict[str, Any] = MODEL["random"]["config"] | {"max_position_embeddings": 2048}
"""Of Qwen3-8B and Qwen3-32B."""
EXPERTS: dict[str, Any] = DENSE | {
    "model_type": "qwen3_moe",
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
}
"""Of Qwen3-30B-A3B."""

LETTERS = """
import rlflow

@rlflow.reward
def letters(sample: rlflow.RewardSample) -> float:
    return sum(c.isalpha() for c in sample.completion) / 12
"""


def write_all(folder: Path) -> None:
    """`dense` and `experts` (models), and a .jsonl file for each data set of the page, and a reward."""
    (folder / "letters.py").write_text(LETTERS, encoding="utf-8")
    write_model(folder / "dense", DENSE)
    write_model(folder / "experts", EXPERTS)
    write_rows(folder / "alpaca_en.jsonl", (_alpaca("Add {0} and {0}.", n) for n in range(20)))
    write_rows(folder / "alpaca_zh.jsonl", (_alpaca("{0} 加 {0} 等于几？", n) for n in range(20)))
    write_rows(folder / "mixin.jsonl", map(_thinking, range(40)))
    write_rows(folder / "numina.jsonl", map(_problem, range(20)))


def write_model(folder: Path, config: dict[str, Any]) -> None:
    """Random bfloat16 weights, with a character tokenizer and Qwen3's chat template."""
    from rlflow.data.characters import build_character_tokenizer
    from rlflow.learner.load_model import create_random_model
    from rlflow.spec.model import RandomModelSpec

    spec = RandomModelSpec(config=config, characters=CHARACTERS)
    create_random_model(spec, "bfloat16", build_character_tokenizer(CHARACTERS), folder)


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """As JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _alpaca(instruction: str, number: int) -> dict[str, Any]:
    return {"instruction": instruction.format(number), "input": "", "output": str(2 * number)}


def _thinking(number: int) -> dict[str, Any]:
    """With a thinking process, as distilled rows have it."""
    answer = f"<think>\nTwice {number}.\n</think>\n\nIt is {2 * number}."
    return {"messages": [_turn("user", f"What is {number} + {number}?"), _turn("assistant", answer)]}


def _problem(number: int) -> dict[str, Any]:
    """As NuminaMath-TIR has it: the answer inside the text of `solution`, and a trailing assistant turn."""
    problem, result = f"What is {number} + {number}?", f"\\boxed{{{2 * number}}}"
    turns = [_turn("user", problem), _turn("assistant", f"```python\nprint({number} + {number})\n``` gives {result}.")]
    return {"problem": problem, "solution": f"We add. The answer is {result}.", "messages": turns}


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
