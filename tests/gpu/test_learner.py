"""The learner on a GPU: stages, recomputation, fused kernels and moves off the device leave the training as it is."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from rlflow.learner.residency import _Mirror
from tests.gpu.agreement import assert_agrees
from tests.integration.engines import RankGroup, save_tiny_model
from tests.integration.learner_rank import Rank
from tests.integration.plain_training import Training
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


@pytest.mark.parametrize("stage", [1, 3])
def test_states_that_are_still_on_their_way_are_waited_for(ranks, whole, stage):
    case, expected = whole
    assert_agrees(ranks.run(train_with_slow_transfers, replace(case, moves=True, zero_stage=stage))[0], expected)


def train_with_slow_transfers(rank: Rank, case: Case) -> Training:
    """As `train`; what comes back to the device does so a tenth of a second late."""
    fill = _Mirror.fill

    def late(mirror: _Mirror) -> None:
        torch.cuda._sleep(200_000_000)  # cycles, on the stream of the transfer
        fill(mirror)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Mirror, "fill", late)
        return train(rank, case)
