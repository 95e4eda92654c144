"""Ways to use ranks that do not go together are refused, all at once."""

import pytest

from rlflow.errors import SpecError
from rlflow.spec.load import parse_job

JOB = {"kind": "sft", "run": {"name": "a"}, "model": {"path": "m"}, "data": {"sources": ["x.jsonl"]}, "steps": 1}


def problems(**fields):
    with pytest.raises(SpecError) as caught:
        parse_job({**JOB, **fields})
    return [line.removeprefix("spec: ") for line in str(caught.value).splitlines()]


def learner_problems(**learner):
    return [line.removeprefix("learner: ") for line in problems(learner=learner)]


def test_experts_and_sequences_cannot_both_be_spread():
    assert learner_problems(num_ranks=4, expert_parallel=2, sequence_parallel=2) == [
        "expert_parallel, sequence_parallel: DeepSpeed's AutoEP does not go with shared sequences; set one of them to 1"
    ]


def test_ranks_must_be_divisible():
    assert learner_problems(num_ranks=4, expert_parallel=3) == ["expert_parallel: 4 ranks (num_ranks) cannot be divided by 3"]
    assert learner_problems(sequence_parallel=2) == ["sequence_parallel: 1 ranks (num_ranks) cannot be divided by 2"]


def test_what_each_of_them_needs():
    assert learner_problems(num_ranks=2, sequence_parallel=2, packing=False, router_aux_loss_coefficient=0.1) == [
        "sequence_parallel: needs packing: true",
        "sequence_parallel: router_aux_loss_coefficient is of whole sequences, and each rank has a part; set it to 0",
    ]
    assert learner_problems(num_ranks=2, expert_parallel=2, zero_stage=0) == [
        "expert_parallel: needs ZeRO stage 1 or higher, not zero_stage: 0"
    ]
    assert problems(learner={"num_ranks": 2, "expert_parallel": 2}, model={"path": "m", "lora": {}}) == [
        "learner.expert_parallel: not with model.lora, whose base weights stay as they are; set it to 1"
    ]


@pytest.mark.parametrize("name", ["expert_parallel", "sequence_parallel"])
def test_models_beside_the_policy_are_not_spread(name):
    assert problems(kind="rm", learner={"num_ranks": 2, name: 2}) == [
        f"learner.{name}: a job of kind rm has models that cannot be spread this way; set it to 1"
    ]
