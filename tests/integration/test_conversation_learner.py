"""SFT: tokens with weights of their own train exactly like plain PyTorch, however the batch is cut up."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from rlflow.algorithms.losses import SmoothedCrossEntropy, held_out_loss
from rlflow.learner.sequences import TrainSequence
from rlflow.loops.conversations import ConversationLengths, plan_conversations
from rlflow.spec.learner import LearnerSpec, OptimizerSpec
from rlflow.spec.model import ModelSpec
from tests.integration.engines import save_tiny_model
from tests.integration.learner_rank import Rank
from tests.integration.plain_training import TEMPERATURE, load_plain, plain_adamw, plain_evaluation, plain_logits

pytestmark = pytest.mark.integration
LEARNING_RATE, SMOOTHING, RELATIVE = 3e-3, 0.1, 1e-5
STEPS = ([7, 2, 5, 0, 9], [1, 8, 3, 4, 6])
"""Rows of two optimiser steps."""


def conversations() -> list[TrainSequence]:
    """Of different lengths, with weights that are not only 0 and 1; one trains nothing."""
    random = np.random.default_rng(0)
    found = []
    for length in random.integers(5, 90, 10):
        weights = random.choice([0.0, 0.25, 1.0, 3.0], length).astype(np.float32)
        found.append(TrainSequence(random.integers(3, 60, length), weights * (len(found) != 5)))
    return found


def learner_spec(ranks: int, budget: int, packing: bool = True, **changes: Any) -> LearnerSpec:
    fields = {"zero_stage": 3} | changes
    return LearnerSpec(
        **fields,
        num_ranks=ranks,
        micro_batch_tokens=budget,
        packing=packing,
        gradient_checkpointing="none",
        max_grad_norm=0.5,
        optimizer=OptimizerSpec(learning_rate=LEARNING_RATE, epsilon=1e-5),
        timeout_s=60.0,
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "dense": save_tiny_model(folder / "dense", tied=False),
        "experts": save_tiny_model(folder / "experts", tied=False, experts=4),
    }


@pytest.fixture(scope="module")
def expected(models) -> Any:
    """Plain training by model, each once."""
    return cache(plain_training)


@pytest.mark.parametrize(("ranks", "budget", "packing"), [(1, 96, True), (1, 4096, False), (2, 96, False), (2, 4096, True)])
def test_weighted_tokens_train_the_same_however_the_batch_is_cut_up(models, groups, expected, ranks, budget, packing):
    check(models["dense"], learner_spec(ranks, budget, packing), groups, expected)


@pytest.mark.parametrize(("model", "stage"), [("dense", 3), ("experts", 1)])
def test_ranks_that_share_sequences_train_as_one(models, groups, expected, model, stage):
    check(models[model], learner_spec(2, 96, sequence_parallel=2, zero_stage=stage), groups, expected)


@pytest.mark.parametrize("stage", [1, 3])
def test_experts_spread_over_ranks_train_as_one(models, groups, expected, stage):
    check(models["experts"], learner_spec(2, 96, expert_parallel=2, zero_stage=stage), groups, expected)


def check(model: str, spec: LearnerSpec, groups: Any, expected: Any) -> None:
    """Metrics of each step and of an evaluation, on every rank, and the weights."""
    results = groups[spec.num_ranks].run(train, model, spec)
    metrics, weights = expected(model)
    for found, _ in results:
        for ours, plain in zip(found, metrics, strict=True):
            assert {name: ours[name] for name in plain} == pytest.approx(plain, rel=RELATIVE)
    for name, weight in weights.items():
        np.testing.assert_allclose(results[0][1][name], weight, rtol=RELATIVE, atol=RELATIVE, err_msg=name)


def train(rank: Rank, model: str, spec: LearnerSpec) -> tuple[list[dict[str, float]], Any]:
    """In a rank's process: as a job does, with the plan of its loop; the last metrics are those of held-out rows."""
    learner = rank.build(ModelSpec(path=model, dtype="float32"), spec, temperature=TEMPERATURE)
    rows = conversations()
    lengths = ConversationLengths([len(row.token_ids) for row in rows], [float(row.loss_weights[1:].sum()) for row in rows])
    metrics = []
    for step in STEPS:
        plan = plan_conversations(lengths, step, spec)
        sequences = dict(enumerate(rows[row] for row in step))
        metrics.append(learner.train_step(plan, sequences, SmoothedCrossEntropy(SMOOTHING), learning_rate=LEARNING_RATE))
    plan = plan_conversations(lengths, range(len(rows)), spec)
    metrics.append(learner.evaluate(plan, dict(enumerate(rows)), held_out_loss, temperature=1.0))
    return metrics, rank.weights()


# ---- plain PyTorch, one conversation at a time


def plain_training(model: str) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    """What `train` returns."""
    plain, spec, rows = load_plain(model), learner_spec(1, 512), conversations()
    optimizer = plain_adamw(plain, spec)
    metrics = []
    for step in STEPS:
        total, weight = torch.tensor(0.0), 0.0
        for row in step:
            trained = rows[row].trained
            if not len(trained):
                continue
            logprobs = plain_logits(plain, rows[row]).log_softmax(-1)
            targets = torch.from_numpy(rows[row].token_ids[trained])[:, None]
            losses = -(1 - SMOOTHING) * logprobs.gather(-1, targets)[:, 0] - SMOOTHING * logprobs.mean(-1)
            weights = torch.from_numpy(rows[row].loss_weights[trained])
            total, weight = total + (weights * losses).sum(), weight + weights.sum().item()
        loss = total / weight
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        metrics.append({"loss": loss.item(), "grad_norm": norm.item()})
    return [*metrics, plain_evaluation(plain, rows)], {name: p.detach().numpy() for name, p in plain.named_parameters()}
