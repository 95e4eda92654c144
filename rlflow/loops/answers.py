"""What becomes of the answers to one row: records to train on, or reasons why there are none."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlflow.cluster.handles import ScoreHandle
from rlflow.data.questions import Question
from rlflow.data.thinking import is_balanced
from rlflow.rollout.completions import GroupSummary
from rlflow.spec.infer import InferSpec

Record = dict[str, Any]
RESERVED = ("row_id", "sample", "finish_reason", "prompt_tokens", "completion_tokens", "reward", "rewards")
"""Names of what is written beside a row's own columns."""


@dataclass(frozen=True, slots=True)
class AnsweredRow:
    """A row and its sampled answers, in the order of samples."""

    row_id: str
    origin: str
    question: Question
    columns: dict[str, Any]
    summary: GroupSummary
    texts: Sequence[str]
    """With what the prompt began of them."""
    scores: Sequence[ScoreHandle] | None


def records_of(row: AnsweredRow, spec: InferSpec) -> tuple[list[Record], list[Record]]:
    """Answers and reasons. With `keep: best` one of either; else one of either for every sample."""
    reasons = [_reason_to_drop(row, index, spec) for index in range(len(row.texts))]
    if spec.keep == "best":
        return _best(row, reasons)
    answers = [_answer(row, i) for i, reason in enumerate(reasons) if reason is None]
    return answers, [_drop(row, i, reason) for i, reason in enumerate(reasons) if reason is not None]


def failure(row_id: str, origin: str, reason: str) -> Record:
    """The record of a row that could not be answered at all."""
    return {"row_id": row_id, "row": origin, "error": reason}


def _best(row: AnsweredRow, reasons: list[str | None]) -> tuple[list[Record], list[Record]]:
    left = [i for i, reason in enumerate(reasons) if reason is None]
    if left:
        assert row.scores is not None
        return [_answer(row, max(left, key=lambda i: row.scores[i].total))], []  # pyright: ignore
    tokens = {"prompt_tokens": row.summary.prompt_tokens, "completion_tokens": sum(row.summary.completion_tokens)}
    return [], [{"row_id": row.row_id, "row": row.origin, "dropped": "; ".join(dict.fromkeys(filter(None, reasons))), **tokens}]


def _reason_to_drop(row: AnsweredRow, index: int, spec: InferSpec) -> str | None:
    if not row.texts[index].strip():
        return "empty"  # no row to train on
    if spec.drop_truncated and row.summary.finish_reasons[index] == "length":
        return "truncated"
    if spec.drop_unbalanced_thinking and not is_balanced(row.texts[index]):
        return "unbalanced thinking"
    if row.scores is None:
        return None
    score = row.scores[index]
    if score.total is None:
        return "; ".join(f"reward {failed.reward} failed: {failed.message}" for failed in score.failures) or "no reward applies"
    if spec.min_reward is not None and score.total < spec.min_reward:
        return f"reward {score.total:g} is below infer.min_reward"
    return None


def _answer(row: AnsweredRow, index: int) -> Record:
    messages = [*row.question.messages, {"role": "assistant", "content": row.texts[index]}]
    return {"messages": messages, **row.columns, **_facts(row, index)}


def _drop(row: AnsweredRow, index: int, reason: str) -> Record:
    return {"row": row.origin, "dropped": reason, "answer": row.texts[index], **_facts(row, index)}


def _facts(row: AnsweredRow, index: int) -> Record:
    facts: Record = {"row_id": row.row_id}
    if len(row.texts) > 1:
        facts["sample"] = index
    facts |= {
        "finish_reason": row.summary.finish_reasons[index],
        "prompt_tokens": row.summary.prompt_tokens,
        "completion_tokens": row.summary.completion_tokens[index],
    }
    if row.scores is not None:
        facts |= {"reward": row.scores[index].total, "rewards": dict(row.scores[index].by_name)}
    return facts
