"""Two GPUs: ranks that share the work train as one does, and jobs use both."""

import json
from dataclasses import replace

import pytest
import torch

from tests.gpu.agreement import assert_agrees
from tests.gpu.cycle_job import run_cycle
from tests.integration.engines import RankGroup, save_tiny_model
from tests.integration.test_learner import Case, train

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")


@pytest.fixture(scope="module")
def groups():
    groups = {ranks: RankGroup(ranks) for ranks in (1, 2)}
    yield groups
    for group in groups.values():
        group.stop()


@pytest.fixture(scope="module", params=["dense", "experts"])
def alone(request, groups, tmp_path_factory):
    """A case for one rank in bfloat16, and what training it gave."""
    experts = 8 if request.param == "experts" else 0
    case = Case(save_tiny_model(tmp_path_factory.mktemp("model"), tied=not experts, experts=experts), dtype="bfloat16")
    return request.param, case, groups[1].run(train, case)[0]


@pytest.mark.parametrize(
    "change",
    [{"zero_stage": 1}, {"zero_stage": 3}, {"zero_stage": 3, "moves": True}, {"sequence_parallel": 2}, {"expert_parallel": 2}],
    ids=str,
)
def test_two_ranks_train_as_one(groups, alone, change):
    kind, case, expected = alone
    if kind == "dense" and "expert_parallel" in change:
        pytest.skip("a dense model has no experts")
    for result in groups[2].run(train, replace(case, ranks=2, **change)):
        assert_agrees(result, expected)


@pytest.mark.parametrize(
    "rollout", [{"num_workers": 2}, {"tensor_parallel_size": 2}], ids=["an engine each", "one engine over both"]
)
@pytest.mark.parametrize("residency", ["turns", "together"])
def test_a_job_uses_both(tmp_path, residency, rollout):
    run_cycle(tmp_path, residency, num_ranks=2, **rollout)
    (layout,) = tmp_path.glob("runs/*/checkpoints/*/state/layout.json")
    assert json.loads(layout.read_text())["num_ranks"] == 2
