from types import SimpleNamespace

import pytest

from rlflow.algorithms.policy_batch import PolicyBatchSettings, ScoredGroup, plan_policy_batch
from rlflow.errors import RewardError
from rlflow.loops.batch_metrics import check_failures, completion_rows, evaluation_metrics, sampling_metrics
from rlflow.observe.metrics import validate
from rlflow.rewards.scorer import RewardFailure, SampleScore
from rlflow.rollout.completions import GroupSummary

TRACEBACK = "Traceback (most recent call last):\n  boom"


def score(total, failed=False, **by_name):
    failures = (RewardFailure("judge", "ValueError: boom", TRACEBACK),) if failed else ()
    return SampleScore(None if failed else total, by_name, failures)


def group(scores, *, tokens=None, reasons=None, prompt_id=4):
    summary = GroupSummary(
        slot=0,
        prompt_id=prompt_id,
        attempt=1,
        weight_version=6,
        prompt_tokens=5,
        completion_tokens=tuple(tokens or [3] * len(scores)),
        finish_reasons=tuple(reasons or ["stop"] * len(scores)),
    )
    return SimpleNamespace(summary=summary, scores=scores)


def batch_of(groups, **changes):
    settings = {
        "loss_type": "dapo",
        "scale_rewards": "none",
        "filter_zero_std": True,
        "filter_overlong": False,
        "optimizer_steps": 1,
        "epochs": 1,
        "max_completion_tokens": 9,
        "num_ranks": 1,
        "micro_batch_tokens": 99,
        "packing": True,
    }
    scored = [
        ScoredGroup(
            g.summary.prompt_id,
            g.summary.prompt_tokens,
            g.summary.completion_tokens,
            tuple(reason == "length" for reason in g.summary.finish_reasons),
            tuple(s.total for s in g.scores),
        )
        for g in groups
    ]
    return plan_policy_batch(scored, PolicyBatchSettings(**{**settings, **changes}))


GROUPS = [
    group(
        [score(1.0, accuracy=1.0, Format=0.0), score(0.0, accuracy=0.0, Format=None)],
        tokens=[2, 6],
        reasons=["stop", "length"],
    ),
    group([score(2.0, accuracy=1.0, Format=1.0), score(None, failed=True, accuracy=None, Format=None)], tokens=[4, 4]),
]


def test_golden_numbers_of_a_batch():
    metrics = sampling_metrics(GROUPS, batch_of(GROUPS))
    assert metrics == pytest.approx(
        {
            "reward_mean": 1.0,
            "reward_std": (2 / 3) ** 0.5,
            "reward_accuracy_mean": 2 / 3,
            "reward_format_mean": 0.5,
            "reward_failed_fraction": 0.25,
            "reward_accuracy_failed_fraction": 0.0,
            "reward_format_failed_fraction": 0.0,
            "reward_judge_failed_fraction": 0.25,
            "groups_zero_std_fraction": 0.5,
            "groups_dropped_fraction": 0.5,
            "completion_tokens_mean": 4.0,
            "completion_clipped_fraction": 0.25,
        }
    )
    validate({"step": 1, **metrics})


def test_a_batch_without_any_reward_has_no_reward_mean():
    groups = [group([score(None, failed=True, accuracy=None)] * 2)]
    metrics = sampling_metrics(groups, batch_of(groups))
    assert not {"reward_mean", "reward_std", "reward_accuracy_mean"} & metrics.keys()
    assert metrics["reward_failed_fraction"] == 1.0
    assert metrics["groups_zero_std_fraction"] == 1.0


def test_evaluation_names():
    metrics = evaluation_metrics(GROUPS)
    assert metrics == pytest.approx(
        {
            **{"eval_reward": 1.0, "eval_accuracy": 2 / 3, "eval_format": 0.5},
            **{"eval_accuracy_pass_at_2": 1.0, "eval_format_pass_at_2": 0.5},
        }
    )
    validate({"step": 1, **metrics})
    assert evaluation_metrics([group([score(None, failed=True, accuracy=None)])]) == {}


def test_one_sample_a_prompt_has_no_pass_rate_and_half_a_reward_does_not_pass():
    assert evaluation_metrics([group([score(1.0, accuracy=1.0)])]).keys() == {"eval_reward", "eval_accuracy"}
    groups = [
        group([score(0.5, a=0.5), score(0.75, a=0.75), score(None, a=None)]),
        group([score(0, a=0), score(1, a=1), score(1, a=1)]),
    ]
    assert evaluation_metrics(groups)["eval_a_pass_at_3"] == 0.5


def test_no_failures_are_not_worth_a_word():
    notes = []
    check_failures([group([score(1.0), score(None)])], 0.0, notes.append)
    assert notes == []


def test_failures_up_to_the_threshold_are_shown():
    notes = []
    check_failures(GROUPS, 0.25, notes.append)
    assert notes == ["25.0% of rewards failed, e.g. judge: ValueError: boom"]


def test_more_failures_end_the_job_with_the_first_tracebacks():
    groups = [group([score(None, failed=True)] * 5)]
    with pytest.raises(RewardError, match=r"reward_pool\.failure_threshold = 99\.0%") as caught:
        check_failures(groups, 0.99, lambda note: None)
    assert "failed for 100.0% of the samples" in str(caught.value)
    assert str(caught.value).count(TRACEBACK) == 3


def test_rows_of_the_completion_log():
    batch = batch_of(GROUPS)
    texts = [["a", "b"], ["c", "d"]]
    rows = completion_rows(GROUPS, batch, texts, lambda prompt_id: SimpleNamespace(text=f"prompt {prompt_id}"))
    assert [row["completion"] for row in rows] == ["a", "b", "c", "d"]
    assert rows[1] == {
        "prompt": "prompt 4",
        "completion": "b",
        "rewards": {"accuracy": 0.0, "Format": None},
        "reward": 0.0,
        "advantage": -0.5,
        "finish_reason": "length",
        "completion_tokens": 6,
        "prompt_id": 4,
        "sample_index": 1,
        "weight_version": 6,
        "attempt": 1,
    }
    assert rows[2]["advantage"] == 0.0
    assert (rows[3]["reward"], rows[3]["advantage"], rows[3]["error"]) == (None, None, "ValueError: boom")
