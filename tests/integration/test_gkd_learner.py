"""A student trains towards its teacher like plain PyTorch, however the batch is cut up, and whoever holds the device."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from rlflow.algorithms.distillation import LikeliestTokensJsd, WholeVocabularyJsd
from rlflow.learner.distillation import distill
from rlflow.learner.roles import Roles
from rlflow.spec.learner import LearnerSpec, OptimizerSpec
from rlflow.spec.model import LoraSpec, ModelSpec
from tests.integration.engines import save_tiny_model
from tests.integration.learner_rank import Rank
from tests.integration.plain_training import TEMPERATURE, load_plain, plain_logits
from tests.integration.stored_batch import StoredBatch, stored_batch

pytestmark = pytest.mark.integration

RELATIVE = 1e-5
RATE, VOCABULARY, TEACHER_ROWS = 3e-3, 60, 64


@dataclass(frozen=True)
class Case:
    """One way to distil the stored batch's two optimiser steps."""

    student: str
    teacher: str
    top_k: int | None = 8
    beta: float = 0.5
    ranks: int = 1
    micro_batch_tokens: int = 512
    packing: bool = True
    zero_stage: Any = 1
    takes_turns: bool = False
    lora: LoraSpec | None = None

    @property
    def learner(self) -> LearnerSpec:
        return LearnerSpec(
            zero_stage=self.zero_stage,
            micro_batch_tokens=self.micro_batch_tokens,
            packing=self.packing,
            gradient_checkpointing="none",
            max_grad_norm=0.5,
            optimizer=OptimizerSpec(learning_rate=RATE, epsilon=1e-5),
            timeout_s=60.0,
        )

    @property
    def batch(self) -> StoredBatch:
        cut = {"num_ranks": self.ranks, "micro_batch_tokens": self.micro_batch_tokens, "packing": self.packing}
        return stored_batch(loss_type="bnpo", **cut)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[str, str]:
    """Student, and a teacher whose head has rows beyond the vocabulary."""
    folder = tmp_path_factory.mktemp("models")
    student = save_tiny_model(folder / "student", tied=True, vocabulary=VOCABULARY)
    return student, save_tiny_model(folder / "teacher", tied=False, vocabulary=TEACHER_ROWS)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"micro_batch_tokens": 4096, "packing": False, "beta": 0.0},
        {"zero_stage": 3, "takes_turns": True, "top_k": None},
        {"ranks": 2, "beta": 1.0, "zero_stage": 2, "takes_turns": True},
        {"ranks": 2, "micro_batch_tokens": 4096, "zero_stage": 3},
        {"ranks": 2, "packing": False, "top_k": None, "beta": 0.1},
    ],
    ids=str,
)
def test_equal_to_plain_training(models, groups, changes):
    case = Case(*models, **changes)
    results = groups[case.ranks].run(train, case)
    assert all(metrics == results[0][0] for metrics, _ in results), "ranks disagree"
    expected, weights = plain_distillation(case)
    for step, plain_step in zip(results[0][0], expected, strict=True):
        assert {name: step[name] for name in plain_step} == pytest.approx(plain_step, rel=RELATIVE)
    for name, weight in weights.items():
        ours = results[0][1][name]
        assert np.linalg.norm(ours - weight) < RELATIVE * np.linalg.norm(weight), name
        np.testing.assert_allclose(ours, weight, rtol=RELATIVE, atol=RELATIVE, err_msg=name)


def test_the_divergence_falls(models, groups):
    metrics = groups[1].run(train, Case(*models, beta=0.0), 15)[0][0]
    assert metrics[-1]["divergence_mean"] < 0.5 * metrics[0]["divergence_mean"]


def test_the_teacher_stays_as_it_is(models, groups):
    before, after = groups[1].run(likeliest_before_and_after, Case(*models))[0]
    assert all(torch.equal(before[i], after[i]) for i in before)


# ---- in the processes of the ranks


def build(rank: Rank, case: Case) -> Roles:
    from rlflow.learner.learner import Learner

    student = ModelSpec(path=case.student, dtype="float32", lora=case.lora)
    teacher = ModelSpec(path=case.teacher, dtype="float32")
    roles = Roles(takes_turns=case.takes_turns)
    roles.build("policy", lambda: rank.build(student, case.learner, temperature=TEMPERATURE))
    options = {"role": "teacher", "num_candidates": case.top_k, "num_tokens": VOCABULARY}
    roles.build("teacher", partial(Learner, case.teacher, teacher, case.learner, rank.info, temperature=TEMPERATURE, **options))
    roles.hold("policy")
    return roles


def train(rank: Rank, case: Case, rounds: int = 1) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    roles, batch = build(rank, case), case.batch
    objective = WholeVocabularyJsd(case.beta) if case.top_k is None else LikeliestTokensJsd(case.beta)
    steps = batch.plan.plan.steps * rounds
    return [distill(roles, step, batch.sequences, objective, RATE) for step in steps], rank.weights()


def likeliest_before_and_after(rank: Rank, case: Case) -> tuple[Any, ...]:
    roles, batch = build(rank, case), case.batch
    (step, *_) = batch.plan.plan.steps
    before = roles["teacher"].ask_teacher(step, batch.sequences)["teacher_logprobs"]
    distill(roles, step, batch.sequences, LikeliestTokensJsd(), RATE)
    return before, roles["teacher"].ask_teacher(step, batch.sequences)["teacher_logprobs"]


# ---- the same with transformers and torch alone


def plain_distillation(case: Case) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    student, teacher = load_plain(case.student), load_plain(case.teacher)
    spec, batch, metrics = case.learner, case.batch, []
    matrices = [p for p in student.parameters() if p.ndim > 1]
    vectors = [p for p in student.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": spec.optimizer.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=RATE,
        betas=spec.optimizer.betas,
        eps=spec.optimizer.epsilon,
    )
    for step in batch.plan.plan.steps:
        members = sorted(step.token_weights)
        tokens = sum(len(batch.sequences[i].trained) for i in members)
        loss = torch.tensor(0.0)
        for i in members:
            with torch.no_grad():
                of_teacher = plain_logits(teacher, batch.sequences[i])[:, :VOCABULARY].softmax(-1)
            of_student = plain_logits(student, batch.sequences[i]).softmax(-1)
            if case.top_k is not None:
                kept = of_teacher.topk(case.top_k).indices
                of_teacher, of_student = (_merged(p, kept) for p in (of_teacher, of_student))
            loss = loss + _divergence(of_student, of_teacher, case.beta).sum() / tokens
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(student.parameters(), spec.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        metrics.append({"loss": loss.item(), "divergence_mean": loss.item(), "grad_norm": norm.item()})
    return metrics, {name: p.detach().numpy() for name, p in student.named_parameters()}


def _merged(probabilities: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    chosen = probabilities.gather(-1, kept)
    others = torch.ones_like(probabilities).scatter(-1, kept, 0.0)
    return torch.cat([chosen, (probabilities * others).sum(-1, keepdim=True)], -1)


def _divergence(student: torch.Tensor, teacher: torch.Tensor, beta: float) -> torch.Tensor:
    if beta == 0:
        return (teacher * (teacher / student).log()).sum(-1)
    if beta == 1:
        return (student * (student / teacher).log()).sum(-1)
    mixture = beta * teacher + (1 - beta) * student
    of_teacher = (teacher * (teacher / mixture).log()).sum(-1)
    return beta * of_teacher + (1 - beta) * (student * (student / mixture).log()).sum(-1)
