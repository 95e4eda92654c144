"""The learner on a GPU: stages, recomputation, fused kernels and moves off the device leave the training as it is."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.gpu.agreement import assert_agrees
from tests.integration.engines import RankGroup, save_tiny_model
from tests.integration.test_learner import Case, train


@pytest.fixture(scope="module")
def ranks() -> Iterator[RankGroup]:
    group = RankGroup(1)
    yield group
    group.stop()


@pytest.fixture(scope="module", params=["dense", "experts"])
def whole(request, ranks, tmp_path_factory):
    """A case in bfloat16, and what training it gave."""
    experts = 8 if request.param == "experts" else 0
    model = save_tiny_model(tmp_path_factory.mktemp("model"), tied=not experts, experts=experts)
    case = Case(model, dtype="bfloat16", zero_stage=1)
    return case, ranks.run(train, case)[0]


@pytest.mark.parametrize(
    "change",
    [
        {"zero_stage": 2},
        {"zero_stage": 3},
        {"gradient_checkpointing": "full"},
        {"gradient_checkpointing": "selective", "zero_stage": 3},
        {"packing": False},
        {"moves": True},
        {"moves": True, "zero_stage": 3},
    ],
    ids=str,
)
def test_ways_to_train_agree(ranks, whole, change):
    case, expected = whole
    assert_agrees(ranks.run(train, replace(case, **change))[0], expected)
