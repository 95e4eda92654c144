import json
import math

import numpy as np
import pytest

from rlflow.observe.metrics import METRICS, PATTERNS, describe, validate


def test_every_key_of_the_contract_is_described():
    contract = """step epoch time loss grad_norm learning_rate reward_mean reward_std reward_accuracy_mean
        groups_zero_std_fraction completion_tokens_mean completion_clipped_fraction entropy_mean kl_mean
        ratio_clipped_fraction sampler_logprob_abs_diff_mean weight_version tokens_per_second step_seconds
        generate_seconds reward_seconds learn_seconds sync_seconds idle_seconds eval_accuracy eval_loss
        token_accuracy gpu_memory_gib_learn"""
    assert [name for name in contract.split() if not describe(name)] == []


def test_names_are_legal_in_prometheus():
    assert all(name.isidentifier() and name.islower() for name in METRICS)
    assert describe("eval/accuracy") is None
    assert describe("reward_My-Reward_mean") is None


def test_exact_names_win_over_patterns():
    assert describe("eval_seconds") == METRICS["eval_seconds"]
    assert describe("reward_std_of_mine_mean") == PATTERNS[r"reward_[a-z0-9_]+_mean"]


def test_what_json_cannot_hold_becomes_null():
    row = validate({"step": 3, "loss": math.nan, "grad_norm": math.inf, "kl_mean": None, "reward_mean": 0.5})
    assert json.dumps(row, allow_nan=False) == (
        '{"step": 3, "loss": null, "grad_norm": null, "kl_mean": null, "reward_mean": 0.5}'
    )


def test_numpy_scalars_become_plain_numbers():
    row = validate({"step": np.int64(2), "loss": np.float32(0.5)})
    assert row == {"step": 2, "loss": 0.5}
    assert [type(value) for value in row.values()] == [int, float]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"step": 1, "lost": 1.0, "los": 1.0}, "los, lost"),
        ({"loss": 1.0}, "integer step, got None"),
        ({"step": 1.5}, "integer step, got 1.5"),
        ({"step": 1, "loss": "0.5"}, "loss must be a number or None, got str"),
    ],
)
def test_mistakes_of_the_program_raise(row, message):
    with pytest.raises(ValueError, match=message):
        validate(row)
