import dataclasses
import itertools
import random

import pytest

from rlflow.algorithms.policy_batch import (
    PolicyBatchSettings,
    ScoredGroup,
    plan_policy_batch,
    plan_rewarded_batch,
    plan_scoring,
    plan_unrewarded_batch,
    with_kl,
)

SETTINGS = {
    "loss_type": "dapo",
    "scale_rewards": "none",
    "filter_zero_std": False,
    "filter_overlong": False,
    "optimizer_steps": 1,
    "epochs": 1,
    "max_completion_tokens": 100,
    "num_ranks": 1,
    "micro_batch_tokens": 1000,
    "packing": True,
}


def group(rewards, *, tokens=None, truncated=(), prompt_tokens=5, prompt_id=0):
    return ScoredGroup(
        prompt_id=prompt_id,
        prompt_tokens=prompt_tokens,
        completion_tokens=tuple(tokens or [10] * len(rewards)),
        is_truncated=tuple(k in truncated for k in range(len(rewards))),
        rewards=tuple(rewards),
    )


def plan(groups, **changes):
    return plan_policy_batch(groups, PolicyBatchSettings(**{**SETTINGS, **changes}))


def trained(step):
    """Sequences that count in a step's loss."""
    return sorted(i for rank in step.ranks for micro in rank if not micro.is_padding for i in micro.sequences)


def test_samples_know_their_place_length_and_advantage():
    batch = plan([group([1, 0], tokens=[3, 4]), group([2, 0], tokens=[5, 6], prompt_tokens=7)])
    assert [(s.group, s.completion, s.num_tokens, s.advantage) for s in batch.samples] == [
        (0, 0, 8, 0.5),
        (0, 1, 9, -0.5),
        (1, 0, 12, 1),
        (1, 1, 13, -1),
    ]
    assert batch.advantages == ((0.5, -0.5), (1, -1))
    [step] = batch.plan.steps
    assert trained(step) == [0, 1, 2, 3]
    assert step.token_weights == dict.fromkeys(range(4), 1 / 18)


def test_a_completion_without_reward_is_left_out_everywhere():
    batch = plan([group([1, None, 0], tokens=[2, 50, 3])])
    assert [(s.completion, s.advantage) for s in batch.samples] == [(0, 0.5), (2, -0.5)]
    assert batch.advantages == ((0.5, None, -0.5),)
    assert batch.plan.steps[0].token_weights == {0: 1 / 5, 1: 1 / 5}


def test_groups_of_equal_rewards_are_filtered_on_request():
    groups = [group([1, 1]), group([1, 0]), group([None, 1]), group([0, 0])]
    kept = plan(groups)
    assert [s.group for s in kept.samples] == [0, 0, 1, 1, 2, 3, 3]
    assert kept.groups_dropped_fraction == 0
    filtered = plan(groups, filter_zero_std=True)
    assert [s.group for s in filtered.samples] == [1, 1]
    assert filtered.groups_dropped_fraction == 0.75
    assert filtered.advantages == kept.advantages, "advantages for the log are those before filters"
    assert filtered.plan.steps[0].token_weights == {0: 1 / 20, 1: 1 / 20}


@pytest.mark.parametrize(
    ("loss_type", "weights"),
    [
        ("grpo", {0: 1 / 30, 1: 0.0, 2: 1 / 90}),  # a masked sequence still counts in the mean
        ("bnpo", {0: 1 / 40, 1: 0.0, 2: 1 / 40}),
        ("dapo", {0: 1 / 60, 1: 0.0, 2: 1 / 60}),  # its tokens stay in the denominator
        ("dr_grpo", {0: 1 / 300, 1: 0.0, 2: 1 / 300}),
    ],
)
def test_a_cut_completion_is_masked_but_stays_in_its_groups_mean(loss_type, weights):
    groups = [group([1, 1, -2], tokens=[10, 20, 30], truncated=[1])]
    batch = plan(groups, filter_overlong=True, loss_type=loss_type)
    assert batch.advantages == ((1, 1, -2),)
    [step] = batch.plan.steps
    assert trained(step) == [0, 2], "no time is spent on a sequence without loss"
    assert step.token_weights == pytest.approx(weights)


def test_cut_completions_are_trained_on_without_the_filter():
    [step] = plan([group([1, 0], truncated=[0, 1])]).plan.steps
    assert trained(step) == [0, 1]


def test_optimizer_steps_take_whole_groups_in_order():
    groups = [group([1, 0], prompt_id=i) for i in range(5)]
    batch = plan(groups, optimizer_steps=2)
    assert [trained(step) for step in batch.plan.steps] == [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9]]
    assert batch.plan.steps[0].token_weights == dict.fromkeys(range(4), 1 / (100 / 2))


def test_epochs_repeat_the_steps():
    batch = plan([group([1, 0]) for _ in range(2)], optimizer_steps=2, epochs=3)
    first, second = batch.plan.steps[:2]
    assert batch.plan.steps == (first, second) * 3
    assert first is batch.plan.steps[2], "old log-probabilities are computed once for each distinct step"


def test_fewer_groups_than_optimizer_steps_give_fewer_steps():
    batch = plan([group([1, 0]), group([1, 1]), group([1, 1])], optimizer_steps=3, filter_zero_std=True)
    [step] = batch.plan.steps
    assert step.token_weights == {0: 1 / 20, 1: 1 / 20}, "the batch's tokens are shared by one step"


def test_a_step_of_masked_completions_only_is_left_out():
    groups = [group([1, 0], truncated=[0, 1]), group([1, 0])]
    batch = plan(groups, optimizer_steps=2, filter_overlong=True)
    [step] = batch.plan.steps
    assert trained(step) == [2, 3]
    assert step.token_weights == {2: 1 / 20, 3: 1 / 20}


@pytest.mark.parametrize(
    ("groups", "changes"),
    [
        ([group([1, 1]), group([0, 0])], {"filter_zero_std": True}),
        ([group([None, None])], {}),
        ([group([None, None])], {"filter_zero_std": True}),
        ([group([1, 0], truncated=[0, 1])], {"filter_overlong": True}),
    ],
)
def test_nothing_to_learn_from_gives_no_step(groups, changes):
    assert plan(groups, optimizer_steps=2, epochs=2, **changes).plan.steps == ()


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dapo", "dr_grpo"])
def test_the_loss_does_not_depend_on_ranks_micro_batches_and_packing(loss_type):
    chance = random.Random(11)
    groups = [
        group(
            [chance.choice([0, 1, 2, None]) for _ in range(4)],
            tokens=[chance.randint(1, 40) for _ in range(4)],
            truncated=[k for k in range(4) if chance.random() < 0.2],
            prompt_id=i,
        )
        for i in range(12)
    ]
    token_losses = {}

    def loss(batch, step):
        total = 0.0
        for i in trained(step):
            sample = batch.samples[i]
            place = (sample.group, sample.completion)
            count = groups[sample.group].completion_tokens[sample.completion]
            values = token_losses.setdefault(place, [chance.gauss(0, 1) for _ in range(count)])
            total += step.token_weights[i] * sum(values)
        return total

    losses = []
    for ranks, budget, packing in itertools.product([1, 2, 5], [50, 200, 10000], [True, False]):
        batch = plan(
            groups,
            loss_type=loss_type,
            optimizer_steps=3,
            filter_zero_std=True,
            filter_overlong=True,
            num_ranks=ranks,
            micro_batch_tokens=budget,
            packing=packing,
        )
        losses.append([loss(batch, step) for step in batch.plan.steps])
    assert len(losses[0]) == 3
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=1e-12)


# ---- advantages of other kinds


def test_kl_lowers_the_reward_before_advantages_and_not_the_filter():
    flat, mixed = group([1, 1]), group([1, None, 0])
    settings = PolicyBatchSettings(**{**SETTINGS, "filter_zero_std": True, "kl_in_reward": 0.5})
    scoring = plan_scoring([flat, mixed], settings)
    assert [(s.group, s.completion) for s in scoring.samples] == [(1, 0), (1, 2)], "a group that is left out is not scored"
    groups = with_kl([flat, mixed], scoring, {0: 2.0, 1: -1.0})
    assert [g.kl for g in groups] == [(None, None), (2.0, None, -1.0)]
    batch = plan_policy_batch(groups, settings)
    # rewards 1 - 0.5 x 2 and 0 + 0.5 x 1
    assert batch.advantages == ((0.0, 0.0), (-0.25, None, 0.25))
    assert batch.groups_dropped_fraction == 0.5


def test_scoring_takes_every_sample_in_one_step():
    groups = [group([1, 0], truncated=[0]) for _ in range(4)]
    batch = plan_scoring(groups, PolicyBatchSettings(**{**SETTINGS, "filter_overlong": True, "optimizer_steps": 2, "epochs": 3}))
    [step] = batch.plan.steps
    assert trained(step) == list(range(8))
    gdpo = PolicyBatchSettings(**{**SETTINGS, "advantage_estimator": "gdpo", "kl_in_reward": 1.0})
    assert plan_scoring(groups, gdpo).plan.steps, "before there are rewards by name or KL"


def test_gdpo_takes_the_rewards_apart_and_leaves_failed_samples_out():
    parts = ((1.0, 0.0), (0.0, 10.0), (5.0, None))
    batch = plan(
        [dataclasses.replace(group([1, 20, None]), reward_parts=parts)], advantage_estimator="gdpo", reward_weights=(1.0, 2.0)
    )
    [advantages] = batch.advantages
    assert advantages[:2] == pytest.approx((-(0.5**0.5), 0.5**0.5), abs=1e-4)
    assert advantages[2] is None, "one of its rewards failed"


def test_the_statistics_of_a_batch_are_those_of_the_groups_it_keeps():
    groups = [group([1, 0]), group([9, 9]), group([1, 0])]
    kept = plan(groups, filter_zero_std=True, advantage_estimator="reinforce_plus_plus", scale_rewards="batch")
    alone = plan([groups[0], groups[2]], advantage_estimator="reinforce_plus_plus", scale_rewards="batch")
    assert kept.advantages == (alone.advantages[0], (0.0, 0.0), alone.advantages[1])


def test_rewards_for_the_learner_hold_the_penalty_for_a_missing_end():
    groups = [group([1.0, None, 0.5], tokens=[2, 3, 4], truncated=[1, 2]), group([0.0], tokens=[6])]
    settings = PolicyBatchSettings(**{**SETTINGS, "loss_type": "bnpo", "epochs": 2})
    batch = plan_rewarded_batch(groups, settings, missing_eos_penalty=2.0)
    assert [(s.group, s.completion, s.advantage) for s in batch.samples] == [(0, 0, 1.0), (0, 2, -1.5), (1, 0, 0.0)]
    assert batch.advantages == ((None, None, None), (None,)), "the learner makes them"
    first, second = batch.plan.steps
    assert first is second, "an epoch repeats its steps"
    assert first.token_weights == dict.fromkeys(range(3), 1 / 12)
    unpunished = plan_rewarded_batch(groups, settings, missing_eos_penalty=None)
    assert [s.advantage for s in unpunished.samples] == [1.0, 0.5, 0.0]


def test_without_rewards_every_completion_is_trained():
    batch = plan_unrewarded_batch([group([None, 1.0], tokens=[2, 3])], PolicyBatchSettings(**SETTINGS))
    assert trained(batch.plan.steps[0]) == [0, 1]
    assert batch.advantages == ((None, None),)
