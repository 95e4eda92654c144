"""Learner ranks train exactly like plain PyTorch, however the batch is cut up."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest

from rlflow.algorithms.losses import PolicyLoss
from rlflow.spec.learner import LearnerSpec, OptimizerSpec
from rlflow.spec.model import ModelSpec
from tests.integration.engines import RankGroup, save_tiny_model
from tests.integration.learner_rank import Rank, Weights
from tests.integration.plain_training import (
    CLIP,
    CORRECTION_CAP,
    KL_COEFFICIENT,
    TEMPERATURE,
    plain_training,
)
from tests.integration.stored_batch import StoredBatch, stored_batch

pytestmark = pytest.mark.integration

RELATIVE = 1e-5
LOSS = PolicyLoss(*CLIP, KL_COEFFICIENT, "truncate", CORRECTION_CAP)


@dataclass(frozen=True)
class Case:
    """One way to train on the stored batch."""

    model: str
    ranks: int = 1
    micro_batch_tokens: int = 512
    packing: bool = True
    zero_stage: int = 3
    loss_type: str = "dapo"
    gradient_checkpointing: bool = False
    dtype: str = "float32"

    @property
    def learner(self) -> LearnerSpec:
        return LearnerSpec(
            zero_stage=self.zero_stage,
            micro_batch_tokens=self.micro_batch_tokens,
            packing=self.packing,
            gradient_checkpointing=self.gradient_checkpointing,
            max_grad_norm=0.5,
            optimizer=OptimizerSpec(learning_rate=3e-3, epsilon=1e-5),
            timeout_s=60.0,
        )

    @property
    def batch(self) -> StoredBatch:
        return stored_batch(
            loss_type=self.loss_type,
            num_ranks=self.ranks,
            micro_batch_tokens=self.micro_batch_tokens,
            packing=self.packing,
        )


@dataclass(frozen=True)
class Models:
    tied: str
    untied: str


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    return Models(
        save_tiny_model(folder / "tied", tied=True), save_tiny_model(folder / "untied", tied=False)
    )


@pytest.fixture(scope="module")
def groups() -> Iterator[dict[int, RankGroup]]:
    groups = {1: RankGroup(1), 2: RankGroup(2)}
    yield groups
    for group in groups.values():
        group.stop()


def train(rank: Rank, case: Case) -> tuple[list[dict[str, float]], Weights]:
    """All optimiser steps of the stored batch, as the learner's actor does them."""
    learner = rank.build(
        ModelSpec(path=case.model, dtype=case.dtype),
        case.learner,
        temperature=TEMPERATURE,
        keep_reference=True,
    )
    batch = case.batch
    steps = batch.plan.plan.steps
    old: dict[int, Any] = {}
    reference: dict[int, Any] = {}
    for step in steps:
        old |= learner.score(step, batch.sequences)
        reference |= learner.score(step, batch.sequences, reference=True)
    metrics = [
        learner.train_step(
            step, batch.sequences, LOSS, learning_rate=3e-3, old=old, reference=reference
        )
        for step in steps
    ]
    return metrics, rank.weights()


@cache
def plain(model: str, loss_type: str) -> tuple[list[dict[str, float]], Weights]:
    case = Case(model, loss_type=loss_type)
    return plain_training(model, case.batch, loss_type, case.learner)


@pytest.mark.parametrize(
    ("ranks", "budget", "packing"), product((1, 2), (512, 4096), (True, False))
)
@pytest.mark.parametrize("tying", ["tied", "untied"])
def test_training_equals_plain_pytorch(models, groups, tying, ranks, budget, packing):
    case = Case(getattr(models, tying), ranks, budget, packing)
    import time
    t=time.time()
    results = groups[ranks].run(train, case)
    print("ranks", time.time()-t); t=time.time()
    metrics, weights = results[0]
    ref, refw = plain(case.model, case.loss_type)
    print("plain", time.time()-t)
    for m, r in zip(metrics, ref, strict=True):
        print(m); print({k: m[k]/r[k]-1 for k in r}, r)
    print(max((abs(weights[k]-refw[k]).max(), k) for k in refw))
