import random

import pytest

from rlflow.algorithms.normalizers import policy_token_weights

LOSS_TYPES = ["grpo", "bnpo", "dapo", "dr_grpo"]


def weights(loss_type, step_tokens, **changes):
    settings = {
        "step_sequences": len(step_tokens),
        "batch_tokens": sum(step_tokens),
        "steps_per_batch": 1,
        "max_completion_tokens": 10,
    }
    return policy_token_weights(loss_type, step_tokens, **{**settings, **changes})


def test_grpo_is_a_mean_over_sequences_of_means_over_tokens():
    assert weights("grpo", [2, 4]) == [1 / 4, 1 / 8]


def test_grpo_counts_masked_sequences():
    assert weights("grpo", [2, 0, 4], step_sequences=3) == [1 / 6, 0, 1 / 12]


def test_bnpo_is_a_mean_over_the_steps_tokens():
    assert weights("bnpo", [2, 0, 4], batch_tokens=100) == [1 / 6, 0, 1 / 6]


def test_dapo_is_a_mean_over_the_batchs_tokens_in_each_of_its_steps():
    assert weights("dapo", [2, 4], batch_tokens=24, steps_per_batch=2) == [1 / 12, 1 / 12]


def test_dr_grpo_divides_by_a_constant():
    assert weights("dr_grpo", [2, 0, 4], max_completion_tokens=10) == [1 / 30, 0, 1 / 30]


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_step_of_masked_sequences_weighs_nothing(loss_type):
    assert weights(loss_type, [0, 0], batch_tokens=8) == [0, 0]


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dapo"])
def test_a_constant_loss_keeps_its_value(loss_type):
    counts = [3, 1, 7, 5]
    assert sum(w * n for w, n in zip(weights(loss_type, counts), counts, strict=True)) == pytest.approx(1)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_steps_of_equal_size_average_to_the_loss_of_the_whole_batch(loss_type):
    """Token losses x weights, averaged over the steps, is the same for one step and for several."""
    chance = random.Random(5)
    counts = [chance.randint(1, 9) for _ in range(12)]
    losses = [[chance.gauss(0, 1) for _ in range(count)] for count in counts]

    def loss(num_steps):
        size = len(counts) // num_steps
        total = 0.0
        for start in range(0, len(counts), size):
            step = range(start, start + size)
            of_step = weights(
                loss_type,
                [counts[i] for i in step],
                batch_tokens=sum(counts),
                steps_per_batch=num_steps,
            )
            total += sum(w * sum(losses[i]) for w, i in zip(of_step, step, strict=True))
        return total / num_steps

    assert loss(3) == pytest.approx(loss(1))
    assert loss(12) == pytest.approx(loss(1))
