"""Adapters above a base in 4 bits: they alone change, and what leaves the learner is the model that it computed with."""

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
