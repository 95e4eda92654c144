"""SFT: tokens with weights of their own train exactly like plain PyTorch, however the batch is cut up."""

from typing import Any

import numpy as np
import pytest
import torch

from rlflow.algorithms.losses import SmoothedCrossEntropy
from rlflow.learner.sequences import TrainSequence
from rlflow.loops.conversations import ConversationLengths, plan_conversations
from rlflow.spec.learner import LearnerSpec, OptimizerSpec
from rlflow.spec.model import ModelSpec
from tests.integration.engines import save_tiny_model
from tests.integration.learner_rank import Rank
from tests.integration.plain_training import TEMPERATURE, load_plain, plain_adamw, plain_logits

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


def learner_spec(ranks: int, budget: int, packing: bool) -> LearnerSpec:
    return LearnerSpec(
        num_ranks=ranks,
        micro_batch_tokens=budget,
        packing=packing,
        zero_stage=3,
        gradient_checkpointing="none",
        max_grad_norm=0.5,
        optimizer=OptimizerSpec(learning_rate=LEARNING_RATE, epsilon=1e-5),
        timeout_s=60.0,
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"), tied=False)


@pytest.fixture(scope="module")
def expected(model) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    plain, spec, rows = load_plain(model), learner_spec(1, 512, True), conversations()
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
    return metrics, {name: p.detach().numpy() for name, p in plain.named_parameters()}


@pytest.mark.parametrize(("ranks", "budget", "packing"), [(1, 96, True), (1, 4096, False), (2, 96, False), (2, 4096, True)])
def test_weighted_tokens_train_the_same_however_the_batch_is_cut_up(model, groups, expected, ranks, budget, packing):
    results = groups[ranks].run(train, model, learner_spec(ranks, budget, packing))
    metrics, weights = expected
    for found, step in zip(results[0][0], metrics, strict=True):
        assert {name: found[name] for name in step} == pytest.approx(step, rel=RELATIVE)
    for name, weight in weights.items():
        np.testing.assert_allclose(results[0][1][name], weight, rtol=RELATIVE, atol=RELATIVE, err_msg=name)


def train(rank: Rank, model: str, spec: LearnerSpec) -> tuple[list[dict[str, float]], Any]:
    """In a rank's process: as a job does, with the plan of its loop."""
    learner = rank.build(ModelSpec(path=model, dtype="float32"), spec, temperature=TEMPERATURE)
    rows = conversations()
    lengths = ConversationLengths([len(row.token_ids) for row in rows], [float(row.loss_weights[1:].sum()) for row in rows])
    metrics = []
    for step in STEPS:
        plan = plan_conversations(lengths, step, spec)
        sequences = dict(enumerate(rows[row] for row in step))
        metrics.append(learner.train_step(plan, sequences, SmoothedCrossEntropy(SMOOTHING), learning_rate=LEARNING_RATE))
    return metrics, rank.weights()
