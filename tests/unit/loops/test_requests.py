from itertools import pairwise

import numpy as np
import pytest

from rlflow.loops.requests import evaluation_requests, request_seed, training_requests
from rlflow.spec.jobs import GrpoJob


def job(**changes):
    fields = {
        "kind": "grpo",
        "run": {"name": "try"},
        "model": {"path": "m"},
        "data": {"sources": ["a.csv"]},
        "rewards": [{"type": "accuracy"}],
        "steps": 1,
    }
    return GrpoJob.model_validate({**fields, **changes})


def prompt_ids(row):
    return np.full(3, row, np.int32)


def test_one_group_for_each_row():
    requests = training_requests(job(rollout={"num_generations": 4}), 1, [7, 2, 7], prompt_ids)
    assert [(r.slot, r.prompt_id, r.num_completions) for r in requests] == [(0, 7, 4), (1, 2, 4), (2, 7, 4)]
    assert [r.prompt_ids.tolist() for r in requests] == [[7] * 3, [2] * 3, [7] * 3]
    assert {r.temperature for r in requests} == {None}, "the engine's own temperature"


def test_only_deterministic_runs_are_seeded():
    assert {r.seed for r in training_requests(job(), 1, [1, 2], prompt_ids)} == {None}
    seeded = job(run={"name": "try", "deterministic": True})

    def seeds(spec, step):
        return [r.seed for r in training_requests(spec, step, [1, 2, 1], prompt_ids)]

    assert seeds(seeded, 1) == seeds(seeded, 1)
    assert len({*seeds(seeded, 1), *seeds(seeded, 2)}) == 6, "no two groups share a seed"
    other = job(run={"name": "try", "deterministic": True, "seed": 1})
    assert not {*seeds(other, 1)} & {*seeds(seeded, 1)}


def test_seeds_are_the_same_on_every_machine():
    assert request_seed(0, 1, 7, 2) == 3714826087179944835


def test_seeds_lie_further_apart_than_any_group_is_large():
    seeds = sorted(request_seed(0, step, prompt, prompt % 8) for step in range(100) for prompt in range(200))
    assert min(b - a for a, b in pairwise(seeds)) > 10_000
    assert seeds[0] >= 0
    assert seeds[-1] < 2**62, "seed + index fits a signed 64-bit integer"


@pytest.mark.parametrize(
    ("asked", "slots"), [("all", list(range(20))), ("sample", [0, 8, 16]), ("none", []), ("auto", [0, 8, 16])]
)
def test_which_groups_report_logprobs(asked, slots):
    requests = training_requests(job(rollout={"sampler_logprobs": asked}), 1, range(20), prompt_ids)
    assert [r.slot for r in requests if r.with_logprobs] == slots


def test_a_sampler_correction_needs_all_logprobs():
    requests = training_requests(job(grpo={"sampler_correction": {"mode": "truncate"}}), 1, range(20), prompt_ids)
    assert all(r.with_logprobs for r in requests)


def test_evaluations_compare_models_and_not_luck():
    spec = job(rollout={"temperature": 0.7, "num_generations": 8})
    requests = evaluation_requests(spec, [0, 1, 2], prompt_ids)
    assert [(r.slot, r.prompt_id, r.num_completions) for r in requests] == [(0, 0, 1), (1, 1, 1), (2, 2, 1)]
    seeds = [r.seed for r in requests]
    assert seeds == [r.seed for r in evaluation_requests(spec, [0, 1, 2], prompt_ids)]
    assert len(set(seeds)) == 3
    training = training_requests(job(run={"name": "try", "deterministic": True}), 1, [0, 1, 2], prompt_ids)
    assert not {r.seed for r in training} & set(seeds)


@pytest.mark.parametrize(("evaluate", "temperature"), [({}, 0.7), ({"temperature": 0}, 0), ({"temperature": 1}, 1)])
def test_temperature_of_evaluations(evaluate, temperature):
    spec = job(rollout={"temperature": 0.7}, evaluate=evaluate)
    assert {r.temperature for r in evaluation_requests(spec, [0, 1], prompt_ids)} == {temperature}


def test_evaluations_have_sampling_settings_of_their_own():
    spec = job(evaluate={"num_samples": 4, "top_p": 0.9, "max_completion_tokens": 7})
    requests = evaluation_requests(spec, [0, 1], prompt_ids)
    assert {(r.num_completions, r.top_p, r.max_tokens) for r in requests} == {(4, 0.9, 7)}
    assert {(r.top_p, r.max_tokens) for r in evaluation_requests(job(), [0], prompt_ids)} == {(None, None)}
    assert {(r.top_p, r.max_tokens) for r in training_requests(spec, 1, [0], prompt_ids)} == {(None, None)}


def test_slots_of_a_later_round_go_on():
    assert [r.slot for r in training_requests(job(), 1, [3, 4], prompt_ids, first_slot=8)] == [8, 9]
