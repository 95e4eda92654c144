from types import SimpleNamespace

import pytest

from rlflow.data.questions import Question
from rlflow.loops.answers import AnsweredRow, records_of
from rlflow.rollout.completions import GroupSummary
from rlflow.spec.infer import InferSpec

USER = {"role": "user", "content": "q"}


def row(texts, reasons=None, rewards=None):
    summary = GroupSummary(0, 0, 0, 0, 7, tuple(range(1, len(texts) + 1)), tuple(reasons or ["stop"] * len(texts)))
    scores = rewards and [
        SimpleNamespace(
            total=r, by_name={"a": r}, failures=() if r is not None else [SimpleNamespace(reward="a", message="boom")]
        )
        for r in rewards
    ]
    return AnsweredRow("f:1", "f, row 1", Question([USER], "q", [1], ""), {"solution": "4"}, summary, texts, scores)


def test_an_answer_is_a_row_to_train_on_with_its_own_columns():
    [answer], errors = records_of(row(["4"]), InferSpec())
    assert answer == {
        "messages": [USER, {"role": "assistant", "content": "4"}],
        "solution": "4",
        "row_id": "f:1",
        "finish_reason": "stop",
        "prompt_tokens": 7,
        "completion_tokens": 1,
    }
    assert errors == []


def test_all_samples_are_written_with_their_numbers():
    answers, _ = records_of(row(["a", "b"]), InferSpec(num_samples=2))
    assert [(a["sample"], a["messages"][-1]["content"], a["completion_tokens"]) for a in answers] == [(0, "a", 1), (1, "b", 2)]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"drop_truncated": True}, "truncated"), ({"drop_unbalanced_thinking": True}, "unbalanced thinking")],
)
def test_dropped_samples_are_recorded_with_their_text(changes, reason):
    sampled = row(["<think>a</think>b", "<think>a"], ["stop", "length"])
    answers, errors = records_of(sampled, InferSpec(num_samples=2, **changes))
    assert [a["sample"] for a in answers] == [0]
    assert [(e["sample"], e["dropped"], e["answer"], e["row"]) for e in errors] == [(1, reason, "<think>a", "f, row 1")]
    assert len(records_of(sampled, InferSpec(num_samples=2))[0]) == 2


def test_the_best_of_what_is_left_is_written():
    spec = InferSpec(num_samples=3, keep="best", drop_truncated=True)
    [answer], errors = records_of(row(["a", "b", "c"], ["stop", "stop", "length"], [0.1, 0.5, 0.9]), spec)
    assert answer["messages"][-1]["content"] == "b" and answer["reward"] == 0.5 and answer["rewards"] == {"a": 0.5}
    assert errors == []


def test_without_a_good_answer_the_row_is_recorded_once():
    spec = InferSpec(num_samples=3, keep="best", min_reward=1, drop_truncated=True)
    answers, [error] = records_of(row(["a", "b", "c"], ["stop", "length", "stop"], [0, None, 0]), spec)
    assert answers == [] and "sample" not in error
    assert error["dropped"] == "reward 0 is below infer.min_reward; truncated"
    assert error["completion_tokens"] == 6


def test_a_failed_reward_is_a_reason():
    answers, [error] = records_of(row(["a"], rewards=[None]), InferSpec())
    assert answers == [] and error["dropped"] == "reward a failed: boom"


def test_an_empty_answer_is_no_row_to_train_on():
    answers, errors = records_of(row(["a", " \n"]), InferSpec(num_samples=2))
    assert [answer["sample"] for answer in answers] == [0]
    assert [(error["sample"], error["dropped"]) for error in errors] == [(1, "empty")]
