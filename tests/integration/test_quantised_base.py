"""Adapters above a base in 4 bits: they alone change, they learn whatever the kind, and what leaves the learner is the model that
it computed with.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlflow.algorithms.losses import PolicyLoss
from rlflow.data.characters import build_character_tokenizer
from rlflow.learner.quantization import dequantised, is_quantised
from rlflow.spec.learner import LearnerSpec
from rlflow.spec.model import LoraSpec, ModelSpec
from tests.integration import test_gkd_learner as gkd
from tests.integration import test_ppo_learner as ppo
from tests.integration import test_preference_learner as preference
from tests.integration.engines import RankGroup, save_tiny_model
from tests.integration.learner_rank import Rank
from tests.integration.plain_training import TEMPERATURE, load_plain, plain_logprobs
from tests.integration.stored_batch import stored_batch

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (pip install 'rlflow[qlora]')")
pytestmark = pytest.mark.integration

LORA = LoraSpec(rank=4, alpha=6.0, quantization="nf4")
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.15}
"""Of log-probabilities; activations in bfloat16 are rounded."""
Arrays = dict[Any, np.ndarray]


@dataclass(frozen=True)
class Trained:
    """A rank before and after two optimiser steps, and one that went on from a checkpoint between them."""

    directory: Path
    dtype: str
    base: Arrays
    """The dequantised base, by name in the model with adapters; `base_after` likewise."""
    base_after: Arrays
    exported_before: Arrays
    exported: Arrays
    scores: Arrays
    resumed_scores: Arrays


@pytest.fixture(scope="module", params=[(0, "float32"), (2, "bfloat16")], ids=["stage 0, float32", "stage 2, bfloat16"])
def trained(request, groups: dict[int, RankGroup], tmp_path_factory) -> Trained:
    stage, dtype = request.param
    directory = tmp_path_factory.mktemp("quantised")
    model = ModelSpec(path=save_tiny_model(directory / "base", tied=False), dtype=dtype, lora=LORA)
    spec = LearnerSpec(zero_stage=stage, micro_batch_tokens=512, gradient_checkpointing="full", timeout_s=60.0)
    first, second = groups[2].run(train_and_save, model, spec, directory)
    return Trained(directory, dtype, **{name: {**first[name], **second[name]} for name in first})


def test_the_base_is_quantised_and_stays(trained):
    assert len(trained.base) == 14
    for name, before in trained.base.items():
        np.testing.assert_array_equal(trained.base_after[name], before, err_msg=name)
        original = load_plain(str(trained.directory / "base")).get_parameter(name).detach().numpy()
        error = np.linalg.norm(before - original) / np.linalg.norm(original)
        assert 0.02 < error < 0.15, name


def test_the_exported_base_is_what_the_learner_computes_with(trained):
    for name, before in trained.base.items():
        np.testing.assert_array_equal(trained.exported_before[name], before, err_msg=name)
        assert not np.array_equal(trained.exported[name], before), name


def test_the_written_model_is_the_trained_one(trained):
    model = load_plain(str(trained.directory / "model"))
    assert not hasattr(model.config, "quantization_config")
    batch = stored_batch(num_ranks=2)
    with torch.no_grad():
        for number, sequence in batch.sequences.items():
            np.testing.assert_allclose(trained.scores[number], plain_logprobs(model, sequence), atol=TOLERANCE[trained.dtype])


def test_a_checkpoint_goes_on(trained):
    for number, scores in trained.scores.items():
        np.testing.assert_array_equal(trained.resumed_scores[number], scores)


# ---- other kinds than sft and grpo


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("kinds")
    preference.write_rows(folder)
    return save_tiny_model(folder / "model", tied=True)


@pytest.mark.parametrize("kind", preference.OBJECTIVES)
def test_preferences_are_learned(model, groups, kind):
    first, second = groups[1].run(preference.train, preference.Case(kind, model, zero_stage=1, lora=LORA))[0][0]
    assert second["loss"] < first["loss"] - 1e-3
    assert groups[1].run(count_quantised) == [14]
    if kind == "dpo":
        assert first["reward_margin_mean"] == 0, "the reference is the same base, adapters off"


def test_a_reward_model_is_written_whole(model, groups, tmp_path):
    from transformers import AutoModelForSequenceClassification

    case = preference.Case("rm", model, zero_stage=1, lora=LORA)
    _, after = groups[1].run(preference.train_and_save, case, tmp_path / "model")[0]
    written = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        _, metrics = preference.plain_rm(written, None)
        chosen = [written(input_ids=torch.from_numpy(s.token_ids)[None]).logits.item() for s in preference.DATA[::2]]
    assert after["preference_accuracy"] == pytest.approx(metrics["preference_accuracy"])
    assert after["rewards_chosen_mean"] == pytest.approx(np.mean(chosen), rel=1e-4)


def test_policy_and_critic_of_ppo_learn(model, groups):
    steps = groups[1].run(ppo.train, ppo.Case(model, lora=LORA))[0]
    assert all(step["grad_norm"] > 0 and step["value_grad_norm"] > 0 for step in steps)
    assert steps[-1]["value_loss"] < steps[1]["value_loss"], "of the batch's second half, in the last and the first epoch"


def test_a_student_comes_closer_to_its_teacher(model, groups, tmp_path):
    teacher = save_tiny_model(tmp_path / "teacher", tied=False, vocabulary=gkd.TEACHER_ROWS)
    steps = groups[1].run(gkd.train, gkd.Case(model, teacher, lora=LORA), 4)[0][0]
    assert steps[-1]["divergence_mean"] < 0.95 * steps[1]["divergence_mean"]


# ---- in the processes of the ranks


def train_and_save(rank: Rank, model: ModelSpec, spec: LearnerSpec, directory: Path) -> dict[str, Arrays]:
    """What `Trained` holds of this rank."""
    learner = rank.build(model, spec, temperature=TEMPERATURE, bucket_bytes=50_000)
    before = {"base": _base(learner), "exported_before": rank.weights()}
    _train(learner, 0)
    learner.save(directory / "state", {})
    _train(learner, 1)
    after = {"base_after": _base(learner), "exported": rank.weights(), "scores": _score(learner)}
    learner.save_model(directory / "model", build_character_tokenizer("0123456789+"))
    learner = rank.build(model, spec, temperature=TEMPERATURE)
    learner.load(directory / "state")
    _train(learner, 1)
    return {**before, **after, "resumed_scores": _score(learner)}


def count_quantised(rank: Rank) -> int:
    """Matrices of the learner built last that are in 4 bits."""
    return sum(map(is_quantised, rank.learner._engine.module.parameters()))


def _train(learner: Any, index: int) -> None:
    batch = stored_batch(num_ranks=2)
    metrics = learner.train_step(batch.plan.plan.steps[index], batch.sequences, PolicyLoss(), learning_rate=0.02)
    assert metrics["grad_norm"] > 1e-3


def _base(learner: Any) -> Arrays:
    named = learner._model.causal_lm[0].named_parameters()
    return {n.replace(".base_layer", ""): dequantised(p).float().numpy().copy() for n, p in named if is_quantised(p)}


def _score(learner: Any) -> Arrays:
    batch = stored_batch(num_ranks=2)
    scores = [learner.score(step, batch.sequences) for step in batch.plan.plan.steps]
    return {number: values.numpy() for step in scores for number, values in step.items()}
