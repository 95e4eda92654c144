"""Reward for the right answer, compared mathematically by math-verify."""

import ast
import logging
import re
from typing import Any

from rlflow.errors import RewardError
from rlflow.rewards.api import RewardSample
from rlflow.spec.rewards import AccuracySpec

ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:[ ,]\d{3})+|\d+)?(?:\.\d+)?(?:\s*\\?%)?")
ARITHMETIC = re.compile(r"[\d.,+\-*/^() ]+")
SYMBOLIC = re.compile(r"[\w\s.,+\-*/^()\[\]{}|<>=!\\%'$]+")
SYMBOL = re.compile(r"[A-Za-z\\^{\[(]")
LATEX_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mbox)\s*\{[^{}]*\}|\\[A-Za-z]+|\\[^A-Za-z]")
LATEX_DELIMITER = re.compile(r"(?<!\\)\$|\\boxed|\\\(|\\\[")
WORD = re.compile(r"[^\W\d_]{2,}")
MAX_BARE_CHARACTERS = 200


class AccuracyReward:
    """1.0 if the completion's answer equals the gold answer, else 0.0; None if the gold cannot be read.

    Both answers are the content of the first `<answer>` tag if there is one, else the whole text. A text that
    is nothing but an expression is read as a whole. In other text `\\boxed{}` and "final answer is" count
    most, then other LaTeX, then the last number.
    """

    def __init__(self, spec: AccuracySpec) -> None:
        import math_verify

        # It warns that without its own signal-based time limit a caller needs one: the sandbox is ours.
        logging.getLogger("math_verify").setLevel(logging.ERROR)
        self._math_verify = math_verify
        self._anchored = [math_verify.LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)]
        self._anywhere = [math_verify.LatexExtractionConfig(), math_verify.ExprExtractionConfig()]
        self._column = spec.column

    def __call__(self, sample: RewardSample) -> float | None:
        """Raises RewardError if the row lacks the column or holds neither text nor a number there."""
        gold = self._read_gold(sample.columns)
        if not gold:
            return None
        answer = self._read(sample.completion)
        return float(self._math_verify.verify(gold, answer, timeout_seconds=0))

    def _read_gold(self, columns: dict[str, Any]) -> list[Any]:
        if self._column not in columns:
            raise RewardError(f"row has no column '{self._column}' (there are: {', '.join(sorted(columns))})")
        gold = columns[self._column]
        if gold is None:
            return []
        if not isinstance(gold, str | int | float):
            raise RewardError(f"column '{self._column}' must hold text or a number, not {type(gold).__name__}")
        return self._read(str(gold))

    def _read(self, text: str) -> list[Any]:
        tagged = ANSWER_TAG.search(text)
        body = (tagged[1] if tagged else text).strip()
        if is_bare(body):
            expression = normalise_bare(body)
            return self._parse(f"${expression}$", self._anywhere) if expression else []
        if tagged:
            return self._parse(body, self._anywhere)
        return self._parse(body, self._anchored) or self._parse(body, self._anywhere)

    def _parse(self, text: str, targets: list[Any]) -> list[Any]:
        return self._math_verify.parse(text, targets, extraction_mode="first_match", parsing_timeout=0)


def is_bare(text: str) -> bool:
    """Whether the text is nothing but one expression without delimiters: `-30`, `1/2`, `2^{10}`, `x+1`.

    Left to math-verify's search, such text is misread: it takes the first number it understands of `2^{10}`
    or `1e5`, and nothing at all of `\\sqrt{2}`.
    """
    if len(text) > MAX_BARE_CHARACTERS or "\n" in text or LATEX_DELIMITER.search(text):
        return False
    if NUMBER.fullmatch(text.rstrip(".")) or ARITHMETIC.fullmatch(text):
        return True
    is_symbolic = SYMBOLIC.fullmatch(text) is not None and SYMBOL.search(text) is not None
    return is_symbolic and WORD.search(LATEX_COMMAND.sub(" ", text)) is None


def normalise_bare(text: str) -> str:
    """The expression as LaTeX without delimiters, or "" if it is no well-formed arithmetic (`5-`, `5 9`).

    The check is needed because math-verify reads the well-formed beginning of a malformed expression.
    """
    text = text.rstrip(".,")
    if NUMBER.fullmatch(text):
        return text.replace(",", "").replace(" ", "")
    if ARITHMETIC.fullmatch(text) and not _is_arithmetic(text):
        return ""
    return text


def _is_arithmetic(text: str) -> bool:
    if "//" in text or "**" in text:
        return False
    try:
        ast.parse(text.replace("^", "**").strip(), mode="eval")
    except (SyntaxError, RecursionError, MemoryError):
        return False
    return True
