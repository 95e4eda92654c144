"""Learner ranks train exactly like plain PyTorch, however the batch is cut up."""

import re
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from rlflow.algorithms.losses import PolicyLoss
from rlflow.errors import LearnerError
from rlflow.learner.grpo import known_scores, sequence_kl
from rlflow.learner.sequences import TrainSequence
from rlflow.spec.learner import LearnerSpec, OptimizerSpec
from rlflow.spec.model import ModelSpec
from tests.integration.engines import RankGroup, save_tiny_model
from tests.integration.learner_rank import Rank
from tests.integration.plain_training import (
    CLIP,
    CORRECTION_CAP,
    KL_COEFFICIENT,
    TEMPERATURE,
    Training,
    load_plain,
    plain_logprobs,
    plain_training,
)
from tests.integration.stored_batch import StoredBatch, stored_batch

pytestmark = pytest.mark.integration

RELATIVE = 1e-5
LOSS = PolicyLoss(*CLIP, KL_COEFFICIENT, "truncate", CORRECTION_CAP)
LEARNING_RATE = 3e-3


@dataclass(frozen=True)
class Case:
    """One way to train on the stored batch."""

    model: str
    ranks: int = 1
    micro_batch_tokens: int = 512
    packing: bool = True
    zero_stage: Any = 3
    loss_type: str = "dapo"
    gradient_checkpointing: Any = "none"
    moves: bool = False
    """Whether the states leave and come back between any two calls."""
    dtype: Any = "float32"
    router_aux_loss_coefficient: float = 0.0
    sequence_parallel: int = 1
    expert_parallel: int = 1
    loss: PolicyLoss = LOSS

    @property
    def learner(self) -> LearnerSpec:
        return LearnerSpec(
            num_ranks=self.ranks,
            zero_stage=self.zero_stage,
            micro_batch_tokens=self.micro_batch_tokens,
            packing=self.packing,
            gradient_checkpointing=self.gradient_checkpointing,
            router_aux_loss_coefficient=self.router_aux_loss_coefficient,
            sequence_parallel=self.sequence_parallel,
            expert_parallel=self.expert_parallel,
            max_grad_norm=0.5,  # below the norms of the batch, so that clipping is compared too
            optimizer=OptimizerSpec(learning_rate=LEARNING_RATE, epsilon=1e-5),
            timeout_s=60.0,
        )

    @property
    def batch(self) -> StoredBatch:
        return stored_batch(
            loss_type=self.loss_type,
            num_ranks=self.ranks,
            micro_batch_tokens=self.micro_batch_tokens,
            packing=self.packing,
            sequence_parallel=self.sequence_parallel,
        )

    def build(self, rank: Rank, **options: Any) -> Any:
        model = ModelSpec(path=self.model, dtype=self.dtype)
        return rank.build(model, self.learner, temperature=TEMPERATURE, **options)


@dataclass(frozen=True)
class Models:
    tied: str
    untied: str
    experts: str


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    return Models(
        save_tiny_model(folder / "tied", tied=True),
        save_tiny_model(folder / "untied", tied=False),
        save_tiny_model(folder / "experts", tied=False, experts=4),
    )


@pytest.fixture(scope="module")
def expected(models) -> Any:
    """Plain training by model and loss type, each once."""
    known: dict[tuple[str, str, PolicyLoss], Training] = {}

    def look_up(case: Case) -> Training:
        key = case.model, case.loss_type, case.loss
        if key not in known:
            known[key] = plain_training(case.model, case.batch, case.loss_type, case.learner, case.loss)
        return known[key]

    return look_up


def check(case: Case, groups: dict[int, RankGroup], expected: Any) -> None:
    results = groups[case.ranks].run(train, case)
    assert all(result.metrics == results[0].metrics for result in results), "ranks disagree"
    plain = expected(case)
    for step, plain_step in zip(results[0].metrics, plain.metrics, strict=True):
        assert {name: step[name] for name in plain_step} == pytest.approx(plain_step, rel=RELATIVE)
    assert results[0].weights.keys() == plain.weights.keys()
    for name, weight in plain.weights.items():
        np.testing.assert_allclose(results[0].weights[name], weight, rtol=RELATIVE, atol=RELATIVE, err_msg=name)


CUTS = list(product((1, 2), (512, 4096), (True, False)))


@pytest.mark.parametrize(("ranks", "budget", "packing"), CUTS)
@pytest.mark.parametrize("tying", ["tied", "untied"])
def test_cutting_the_batch_changes_nothing(models, groups, expected, tying, ranks, budget, packing):
    check(Case(getattr(models, tying), ranks, budget, packing), groups, expected)


@pytest.mark.parametrize(("ranks", "stage"), list(product((1, 2), (0, 1, 2))))
def test_zero_stages_change_nothing(models, groups, expected, ranks, stage):
    check(Case(models.tied, ranks, zero_stage=stage), groups, expected)


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo"])
def test_other_loss_types(models, groups, expected, loss_type):
    for ranks in (1, 2):
        check(Case(models.tied, ranks, loss_type=loss_type), groups, expected)


VARIANTS = {
    "gspo": {"importance_sampling": "sequence", "kl_estimator": "k2", "clip_low": 0.99, "clip_high": 1.01},
    "gspo-token": {"importance_sampling": "sequence_token", "kl_estimator": "k1", "dual_clip": 1.5},
    "cispo": {"surrogate": "cispo", "entropy_coefficient": 0.02},
    "sapo": {"surrogate": "sapo", "tau_negative": 1.5},
    "entropy-mask": {"top_entropy_quantile": 0.3, "entropy_coefficient": 0.02, "dual_clip": 1.1},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_cutting_the_batch_changes_nothing_for_variants_of_the_loss(models, groups, expected, variant):
    case = Case(models.untied, loss=replace(LOSS, **VARIANTS[variant]))
    for ranks, budget, packing in ((1, 4096, True), (1, 512, False), (2, 512, True), (2, 4096, False)):
        check(replace(case, ranks=ranks, micro_batch_tokens=budget, packing=packing), groups, expected)


ON_POLICY = {"clip": {}, "cispo": {"surrogate": "cispo"}, "entropy-mask": {"surrogate": "sapo", "top_entropy_quantile": 0.3}}


@pytest.mark.parametrize(("ranks", "stage"), [(1, 1), (2, 3)])
@pytest.mark.parametrize("variant", ON_POLICY)
def test_an_on_policy_step_is_one_whose_old_log_probabilities_are_its_own(models, groups, ranks, stage, variant):
    """Its gradient is computed with the log-probabilities, since nothing in it depends on them."""
    case = Case(models.tied, ranks, zero_stage=stage, loss=PolicyLoss(**ON_POLICY[variant]))
    results = [groups[ranks].run(train_one_step, case, on_policy)[0] for on_policy in (True, False)]
    assert results[0].metrics == [pytest.approx(results[1].metrics[0], rel=RELATIVE, abs=1e-7)]
    for name, weight in results[1].weights.items():
        np.testing.assert_allclose(results[0].weights[name], weight, rtol=RELATIVE, atol=RELATIVE, err_msg=name)


@pytest.mark.parametrize("mode", ["full", "selective"])
@pytest.mark.parametrize(("tying", "packing"), [("tied", True), ("untied", False)])
def test_gradient_checkpointing_changes_nothing(models, groups, expected, tying, packing, mode):
    case = Case(getattr(models, tying), packing=packing, gradient_checkpointing=mode)
    for ranks in (1, 2):
        check(replace(case, ranks=ranks), groups, expected)


@pytest.mark.parametrize(("ranks", "stage"), [(1, 3), (2, 3), (1, 2), (2, 1)])
def test_states_that_left_and_came_back_train_on(models, groups, expected, ranks, stage):
    check(Case(models.tied, ranks, zero_stage=stage, moves=True), groups, expected)


@pytest.mark.parametrize(("ranks", "stage", "mode"), [(1, 1, "none"), (2, 3, "none"), (2, 3, "selective"), (1, 3, "full")])
def test_a_mixture_of_experts_trains_as_with_eager_experts(models, groups, expected, ranks, stage, mode):
    check(Case(models.experts, ranks, zero_stage=stage, gradient_checkpointing=mode), groups, expected)


@pytest.mark.parametrize(("model", "stage", "mode"), [("experts", 3, "none"), ("tied", 1, "full")])
def test_ranks_that_share_sequences_train_as_one(models, groups, expected, model, stage, mode):
    """A row of odd length is among the micro-batches, and one in which a rank predicts nothing."""
    case = Case(getattr(models, model), 2, zero_stage=stage, gradient_checkpointing=mode, sequence_parallel=2)
    for budget in (512, 64):
        check(replace(case, micro_batch_tokens=budget), groups, expected)


@pytest.mark.parametrize(("stage", "mode"), [(1, "none"), (3, "full")])
def test_experts_spread_over_ranks_train_as_one(models, groups, expected, stage, mode):
    case = Case(models.experts, 2, zero_stage=stage, gradient_checkpointing=mode, expert_parallel=2)
    check(replace(case, moves=stage == 3), groups, expected)


def test_balancing_experts_does_not_depend_on_the_cut(models, groups):
    whole = Case(models.experts, router_aux_loss_coefficient=0.1, micro_batch_tokens=4096)
    cuts = [
        replace(whole, ranks=2, zero_stage=3),
        replace(whole, ranks=2, zero_stage=1, expert_parallel=2),
        replace(whole, packing=False, micro_batch_tokens=512, gradient_checkpointing="full"),
    ]
    first, *others = [groups[case.ranks].run(train, case)[0] for case in (whole, *cuts)]
    for other in others:
        for step, same_step in zip(first.metrics, other.metrics, strict=True):
            assert same_step == pytest.approx(step, rel=RELATIVE)
    plain = groups[1].run(train, replace(whole, router_aux_loss_coefficient=0.0))[0]
    step, batch = whole.batch.plan.plan.steps[0], whole.batch
    weight = sum(step.token_weights[i] * len(batch.sequences[i].trained) for micro in step.ranks[0] for i in micro.sequences)
    auxiliary = first.metrics[0]["router_aux_loss"]
    assert auxiliary > 2, "at its best it is top_k"
    assert first.metrics[0]["loss"] == pytest.approx(plain.metrics[0]["loss"] + 0.1 * weight * auxiliary, rel=1e-4)


def test_more_ranks_than_sequences_pad_with_nothing(models, groups):
    """The second rank has only a padding micro-batch, and the metrics are those of one rank."""
    alone = groups[1].run(train_on_one_sequence, models.tied)[0]
    both = groups[2].run(train_on_one_sequence, models.tied)
    assert both[0] == both[1] == pytest.approx(alone, rel=RELATIVE)


@pytest.mark.parametrize(("ranks", "stage"), [(1, 3), (2, 3), (2, 2), (1, 1)])
def test_bfloat16_is_close(models, groups, expected, ranks, stage):
    case = Case(models.tied, ranks, dtype="bfloat16", zero_stage=stage)
    result = groups[ranks].run(train, case)[0]
    for step, plain_step in zip(result.metrics, expected(case).metrics, strict=True):
        assert {name: step[name] for name in plain_step} == pytest.approx(plain_step, rel=0.05, abs=0.003)
    for name, weight in expected(case).weights.items():
        beyond_rounding = np.abs(result.weights[name] - weight) - np.abs(weight) * 2**-8
        assert beyond_rounding.clip(0).mean() < 0.2 * LEARNING_RATE, name


def test_scores_are_those_of_transformers(models, groups):
    case = Case(models.untied, ranks=2)
    scores = groups[2].run(score_policy_and_reference, case, 0)
    plain = load_plain(models.untied)
    together = {**scores[0].policy, **scores[1].policy}
    assert together.keys() == set(case.batch.sequences)
    for number, sequence in case.batch.sequences.items():
        with torch.no_grad():
            np.testing.assert_allclose(together[number], plain_logprobs(plain, sequence), atol=RELATIVE)


@pytest.mark.parametrize(("ranks", "stage"), [(1, 3), (2, 3), (2, 2), (1, 1), (2, 0)])
def test_reference_stays_and_policy_comes_back(models, groups, ranks, stage):
    case = Case(models.tied, ranks, zero_stage=stage)
    before = groups[ranks].run(score_policy_and_reference, case, 0)
    after = groups[ranks].run(score_policy_and_reference, case, 2)
    for start, end in zip(before, after, strict=True):
        assert _equal(start.policy, start.reference)
        assert _equal(end.reference, start.reference), "the reference is the model at the start, bit for bit"
        assert not _equal(end.policy, end.reference)
        assert _equal(end.policy_again, end.policy), "scoring the reference left the policy as it was"


@pytest.mark.parametrize("sequence_parallel", [1, 2])
def test_the_kl_of_a_completion_is_the_same_on_more_ranks(models, groups, sequence_parallel):
    """That which `grpo.kl_in: reward` takes off rewards; after a step, as the policy starts as its reference."""
    alone = Case(models.tied)
    (expected,) = groups[1].run(kl_after_a_step, alone)
    assert expected.keys() == set(alone.batch.sequences)
    assert min(abs(kl) for kl in expected.values()) > 1e-3
    ranks = groups[2].run(kl_after_a_step, replace(alone, ranks=2, sequence_parallel=sequence_parallel))
    assert (ranks[0].keys() == ranks[1].keys()) == (sequence_parallel == 2)
    for found in (ranks[0] | ranks[1], ranks[1] | ranks[0]):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(("ranks", "stage"), [(1, 3), (2, 3), (1, 2)])
def test_policy_comes_back_when_scoring_fails(models, groups, ranks, stage):
    for same in groups[ranks].run(fail_in_reference, Case(models.tied, ranks, zero_stage=stage)):
        assert same


@pytest.mark.parametrize(("ranks", "stage", "moves"), [(2, 3, False), (1, 2, True)])
def test_a_checkpoint_continues_as_if_nothing_happened(models, groups, tmp_path, ranks, stage, moves):
    """In new processes; the reference of the checkpoint is the policy after the first step, not the model at the start. With
    `moves`, the optimiser's states have just come back when they are saved, and when others are loaded in their place.
    """
    case = Case(models.untied, ranks, zero_stage=stage, moves=moves)
    saved = groups[ranks].run(step_save_step, case, tmp_path)
    groups[ranks].stop()
    for before, after in zip(saved, groups[ranks].run(load_step, case, tmp_path), strict=True):
        assert after.state == {"step": 2, "cursor": [3, 4]}
        assert after.metrics == before.metrics
        assert after.draws == before.draws
        assert _equal(after.weights, before.weights)
        assert _equal(after.policy, before.policy) and not _equal(before.policy, before.reference)
        assert _equal(after.reference, before.reference), "the reference is the policy of the refresh, bit for bit"


def test_a_checkpoint_of_other_ranks_or_another_stage_is_refused(models, groups, tmp_path):
    groups[1].run(step_save_step, Case(models.tied), tmp_path)
    assert groups[2].run(refusal, load_step, Case(models.tied, ranks=2), tmp_path)[1] == (
        f"{tmp_path} was saved with 1 learner ranks at ZeRO stage 3, but this run has "
        "2 learner ranks at ZeRO stage 3: set learner.num_ranks, learner.zero_stage and learner.expert_parallel as they were"
    )
    message = groups[1].run(refusal, load_step, Case(models.tied, zero_stage=2), tmp_path)[0]
    assert "has 1 learner ranks at ZeRO stage 2" in message


def test_a_gradient_that_is_not_finite_stops_the_run(models, groups):
    (message,) = groups[1].run(refusal, train_on_nan, Case(models.tied))
    assert re.match("the gradient norm is (nan|inf)", message)


# ---- in the processes of the ranks


def train(rank: Rank, case: Case) -> Training:
    """All optimiser steps of the stored batch, as the learner's actor does them."""
    learner = case.build(rank, keep_reference=True)
    batch = case.batch
    steps = batch.plan.plan.steps
    known = known_scores(learner, steps, batch.sequences, case.loss, on_policy=False)
    metrics = []
    for step in steps:
        if case.moves:
            move_away_and_back(learner)
        metrics.append(learner.train_step(step, batch.sequences, case.loss, learning_rate=LEARNING_RATE, known=known))
    if case.moves:
        learner.move("weights")  # as at a weight sync
    return Training(metrics, rank.weights())


def train_one_step(rank: Rank, case: Case, on_policy: bool) -> Training:
    """As `train`, of the first step alone."""
    learner, batch = case.build(rank), case.batch
    step = batch.plan.plan.steps[0]
    known = known_scores(learner, [step], batch.sequences, case.loss, on_policy=on_policy)
    metrics = learner.train_step(step, batch.sequences, case.loss, learning_rate=LEARNING_RATE, known=known)
    return Training([metrics], rank.weights())


def move_away_and_back(learner: Any) -> None:
    """Every way from one place to another, some before the states are used; master weights exist before the first step."""
    parameter = next(learner._model.parameters())
    weights = getattr(parameter, "ds_tensor", parameter.data).untyped_storage()
    training = [tensor.untyped_storage() for tensor in learner._mover._training_tensors()]
    assert training
    ways = ("weights", "offloaded", "full", "weights", "full", "offloaded", "weights", "offloaded", "weights", "full")
    for state in ways:
        learner.move(state)
        assert bool(weights.nbytes()) == (state != "offloaded")
        assert all(bool(storage.nbytes()) == (state == "full") for storage in training)


def train_on_one_sequence(rank: Rank, model: str) -> dict[str, float]:
    from rlflow.algorithms.batch_plan import plan_step

    learner = Case(model).build(rank)
    sequence = TrainSequence(np.arange(5, 25), np.ones(20, np.float32), advantage=1.5)
    step = plan_step([0], [20], {0: 1 / 19}, num_ranks=rank.info.world_size, micro_batch_tokens=64, packing=True)
    return learner.train_step(step, {0: sequence}, PolicyLoss(), learning_rate=LEARNING_RATE)


@dataclass(frozen=True)
class Scores:
    """This rank's log-probabilities by sequence."""

    policy: dict[int, np.ndarray]
    reference: dict[int, np.ndarray]
    policy_again: dict[int, np.ndarray]


def score_policy_and_reference(rank: Rank, case: Case, num_steps: int) -> Scores:
    """After so many optimiser steps."""
    learner = case.build(rank, keep_reference=True)
    batch = case.batch
    for step in batch.plan.plan.steps[:num_steps]:
        learner.train_step(step, batch.sequences, LOSS, learning_rate=LEARNING_RATE)

    def score(**options: Any) -> dict[int, np.ndarray]:
        scores = [learner.score(step, batch.sequences, **options) for step in batch.plan.plan.steps]
        return {number: values.numpy() for step in scores for number, values in step.items()}

    return Scores(score(), score(reference=True), score())


def kl_after_a_step(rank: Rank, case: Case) -> dict[int, float]:
    """This rank's share of what `PolicyLearner.sequence_kl` returns."""
    learner, batch = case.build(rank, keep_reference=True), case.batch
    steps = batch.plan.plan.steps
    learner.train_step(steps[0], batch.sequences, LOSS, learning_rate=LEARNING_RATE)
    return sequence_kl(learner, steps, batch.sequences, "k1")


def fail_in_reference(rank: Rank, case: Case) -> bool:
    """Whether the weights after a failed pass are those before it."""
    learner = case.build(rank, keep_reference=True)
    batch = case.batch
    step = batch.plan.plan.steps[0]
    learner.train_step(step, batch.sequences, LOSS, learning_rate=LEARNING_RATE)
    before = rank.weights()
    mine = [number for micro_batch in step.ranks[rank.info.rank] for number in micro_batch.sequences]
    incomplete = {number: batch.sequences[number] for number in mine[:-1]}
    with pytest.raises(KeyError):
        learner.score(step, incomplete, reference=True)
    return _equal(before, rank.weights())


@dataclass(frozen=True)
class Continued:
    """A rank from a checkpoint on, for one step."""

    state: Any
    policy: dict[int, np.ndarray]
    reference: dict[int, np.ndarray]
    metrics: dict[str, float]
    draws: list[float]
    """Random numbers after the step."""
    weights: dict[str, np.ndarray]


def step_save_step(rank: Rank, case: Case, directory: Any) -> Continued:
    """A step, a refresh of the reference and another step; a checkpoint; then the first step's batch again."""
    learner = case.build(rank, keep_reference=True)
    batch = case.batch
    first, second = batch.plan.plan.steps
    learner.train_step(first, batch.sequences, LOSS, learning_rate=LEARNING_RATE)
    middle = _scores(learner, case)
    learner.refresh_reference()
    learner.train_step(second, batch.sequences, LOSS, learning_rate=LEARNING_RATE)
    torch.rand(rank.info.rank + 1)
    state = {"step": 2, "cursor": [3, 4]}
    if case.moves:
        move_away_and_back(learner)
    learner.save(directory, state)
    assert _equal(_scores(learner, case, reference=True), middle)
    return _continue(rank, case, state)


def load_step(rank: Rank, case: Case, directory: Any) -> Continued:
    """As `step_save_step` after its save."""
    learner = case.build(rank, keep_reference=True)
    if case.moves:
        move_away_and_back(learner)
    return _continue(rank, case, learner.load(directory))


def _continue(rank: Rank, case: Case, state: Any) -> Continued:
    learner, batch = rank.learner, case.batch
    policy, reference = _scores(learner, case), _scores(learner, case, reference=True)
    metrics = learner.train_step(batch.plan.plan.steps[0], batch.sequences, LOSS, learning_rate=LEARNING_RATE)
    return Continued(state, policy, reference, metrics, torch.rand(3).tolist(), rank.weights())


def _scores(learner: Any, case: Case, **options: Any) -> dict[int, np.ndarray]:
    scores = learner.score(case.batch.plan.plan.steps[0], case.batch.sequences, **options)
    return {number: values.numpy() for number, values in scores.items()}


def refusal(rank: Rank, function: Any, *arguments: Any) -> str:
    """The message of the function's `LearnerError`; the rank lives on."""
    with pytest.raises(LearnerError) as caught:
        function(rank, *arguments)
    return str(caught.value)


def train_on_nan(rank: Rank, case: Case) -> None:
    learner = case.build(rank)
    batch = case.batch
    poisoned = {n: replace(s, advantage=float("nan")) for n, s in batch.sequences.items()}
    learner.train_step(batch.plan.plan.steps[0], poisoned, LOSS, learning_rate=LEARNING_RATE)


def _equal(left: dict[Any, np.ndarray], right: dict[Any, np.ndarray]) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[key], right[key]) for key in left)
