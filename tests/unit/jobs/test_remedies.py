"""What the plan advises where memory is too little: what lowers the estimate, on GPUs and without."""

from typing import Any

import pytest

from rlflow.jobs.plan import Devices, parse_devices, plan_job
from rlflow.spec.load import parse_job

PROCESSOR = Devices("cpu", 64, 24.0)
FEWER_TOKENS, MORE_RANKS = "learner.micro_batch_tokens (fewer)", "learner.num_ranks (more, on as many GPUs)"


def advice(devices: Devices, kind: str = "sft", **fields: Any) -> tuple[str, list[str]]:
    """What needs the most, and the changes that the plan names."""
    job = {"kind": kind, "run": {"name": "a"}, "model": {"path": "Qwen/Qwen3-14B"}, "data": {"sources": ["org/rows"]}}
    steps = {} if kind == "infer" else {"steps": 1}
    (problem,) = plan_job(parse_job({**job, **steps, **fields}), devices).problems
    role, text = problem.split(": ")[0], problem.split("; ")[1]
    assert text.endswith("take a smaller model")
    return role, text.removesuffix("take a smaller model").removeprefix("change ").removesuffix(" or ").split(", ")


def named(devices: Devices, **fields: Any) -> str:
    return ", ".join(advice(devices, **fields)[1])


def test_more_ranks_help_on_gpus_and_fewer_without():
    ranks = {"learner": {"num_ranks": 4}}
    on_gpus, without = named(parse_devices("4x24"), **ranks), named(PROCESSOR, **ranks)
    assert on_gpus == f"{MORE_RANKS}, {FEWER_TOKENS}, model.lora"
    assert without == f"learner.num_ranks (fewer), {FEWER_TOKENS}, model.lora"


@pytest.mark.parametrize("learner", [{"num_ranks": 1}, {"num_ranks": 4, "sequence_parallel": 4}])
def test_what_cannot_be_fewer_is_not_named(learner):
    assert "num_ranks" not in named(PROCESSOR, learner=learner)


def test_what_is_done_already_is_not_named():
    assert "gradient_checkpointing (full)" in named(PROCESSOR, learner={"gradient_checkpointing": "none"})
    assert "gradient_checkpointing" not in named(PROCESSOR, learner={"gradient_checkpointing": "full"})
    assert "model.lora" not in named(PROCESSOR, model={"path": "Qwen/Qwen3-14B", "lora": {}})
    assert "model.dtype (bfloat16)" in named(PROCESSOR, model={"path": "Qwen/Qwen3-14B", "dtype": "float32"})


def test_ranks_that_partition_nothing_are_told_to():
    whole = {"model": {"path": "Qwen/Qwen3-14B", "dtype": "float32"}, "learner": {"num_ranks": 2, "zero_stage": 0}}
    changes = named(parse_devices("2x80"), **whole)
    assert "learner.zero_stage (auto)" in changes and "num_ranks" not in changes


def test_an_engine_is_spread_over_gpus_or_there_are_fewer():
    assert advice(parse_devices("2x16"), kind="infer") == ("rollout", ["rollout.tensor_parallel_size (more)"])
    assert advice(PROCESSOR, kind="infer", rollout={"num_workers": 2}) == ("rollout", ["rollout.num_workers (fewer)"])
    assert advice(PROCESSOR, kind="infer") == ("rollout", [""]), "a smaller model is all that helps"


def test_the_turn_that_is_too_large_is_named():
    fields = {"kind": "grpo", "model": {"path": "Qwen/Qwen3-14B"}, "rewards": [{"type": "accuracy"}]}
    many = {**fields, "learner": {"num_ranks": 32}, "rollout": {"max_completion_tokens": 64}}
    assert advice(parse_devices("32x30"), **many) == ("rollout", ["rollout.tensor_parallel_size (more)"])
    together = {"residency": "together", "learner": {"num_ranks": 8}, "rollout": {"max_completion_tokens": 64}}
    assert "residency (turns)" in named(parse_devices("8x40"), **fields, **together)


def test_without_gpus_everything_that_has_copies_or_a_cache_of_its_own_counts():
    changes = named(
        PROCESSOR,
        kind="gkd",
        teacher={"path": "Qwen/Qwen3-0.6B", "num_ranks": 8},
        rewards=[{"type": "model", "path": "Qwen/Qwen3-0.6B"}],
        rollout={"cpu_kv_cache_gib": 8},
        reward_pool={"num_workers": 4},
    )
    for change in ("rollout.cpu_kv_cache_gib (less)", "reward_pool.num_workers (fewer)", "teacher.num_ranks (fewer)"):
        assert change in changes
