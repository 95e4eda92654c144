"""What training leaves: adapters that alone have changed, and model directories that others can load."""

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from rlflow.algorithms.losses import PolicyLoss
from rlflow.cli import app
from rlflow.data.characters import build_character_tokenizer
from rlflow.learner.export import gathered
from rlflow.spec.learner import LearnerSpec
from rlflow.spec.model import LoraSpec, ModelSpec
from tests.integration.engines import RankGroup, save_tiny_model
from tests.integration.learner_rank import Rank
from tests.integration.plain_training import TEMPERATURE, load_plain, plain_logprobs
from tests.integration.stored_batch import StoredBatch, stored_batch

pytestmark = pytest.mark.integration

LORA = LoraSpec(rank=4, alpha=6.0)
TOLERANCE = 1e-5
Arrays = dict[Any, np.ndarray]


@dataclass(frozen=True)
class Trained:
    """A learner before and after two optimiser steps."""

    base: str
    directory: Path
    norms: list[float]
    parameters_before: Arrays
    parameters: Arrays
    exported_before: Arrays
    exported: Arrays
    scores_before: Arrays
    scores: Arrays
    reference: Arrays

    @property
    def adapted(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """A and B by name of the layer."""
        names = [name.removesuffix(".lora_A.default.weight") for name in self.parameters if ".lora_A." in name]
        return {name: tuple(self.parameters[f"{name}.lora_{x}.default.weight"] for x in "AB") for name in names}  # pyright: ignore


@pytest.fixture(scope="module", params=["tied-3", "untied-3", "tied-2"])
def adapters(request, groups, tmp_path_factory) -> Trained:
    """Adapters trained with gradient checkpointing."""
    return _train(request.param, groups[2], tmp_path_factory.mktemp("adapters"), LORA)


@pytest.fixture(scope="module", params=["experts-2", "experts-0"])
def experts(request, groups, tmp_path_factory) -> Trained:
    """Adapters of attention, routers and fused experts trained."""
    return _train(request.param, groups[2], tmp_path_factory.mktemp("experts"), LORA)


@pytest.fixture(scope="module", params=["tied-3", "untied-3", "untied-0"])
def full(request, groups, tmp_path_factory) -> Trained:
    """All parameters trained."""
    return _train(request.param, groups[2], tmp_path_factory.mktemp("full"), None)


def test_only_adapters_change(adapters):
    assert all(norm > 1e-3 for norm in adapters.norms)
    for name, before in adapters.parameters_before.items():
        unchanged = np.array_equal(adapters.parameters[name], before)
        assert unchanged == (".lora_" not in name), name


def test_all_linear_layers_but_the_head_have_adapters(adapters):
    layers = {name.split(".model.layers.")[1] for name in adapters.adapted}
    projections = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
    assert layers == {f"{layer}.{name}" for layer in (0, 1) for name in projections}


def test_exported_weights_are_merged(adapters):
    for name, weight in adapters.exported_before.items():
        np.testing.assert_array_equal(weight, adapters.parameters_before[_base_name(name, adapters)])
    for name, weight in adapters.exported.items():
        expected = adapters.parameters[_base_name(name, adapters)]
        layer = _peft_name(name).removesuffix(".weight")
        if layer in adapters.adapted:
            down, up = adapters.adapted[layer]
            expected = expected + LORA.alpha / LORA.rank * (up @ down)
        np.testing.assert_allclose(weight, expected, atol=1e-6, err_msg=name)


def test_reference_is_the_model_without_adapters(adapters):
    plain = load_plain(adapters.base)
    _check_scores(adapters.scores_before, plain)
    _check_scores(adapters.reference, plain)
    assert max(np.abs(adapters.scores[n] - adapters.reference[n]).max() for n in adapters.scores) > 0.1


def test_saved_adapters_load_with_peft(adapters):
    from peft import PeftModel

    model = PeftModel.from_pretrained(load_plain(adapters.base), str(adapters.directory / "adapter"))
    _check_scores(adapters.scores, model)


def test_model_with_adapters_loads_merged(adapters):
    _check_scores(adapters.scores, load_plain(str(adapters.directory / "model")))


def test_all_files_have_the_same_mode(full, adapters):
    """On storage that users share, a model that its owner alone may read is of no use to the others."""
    for folder in (full.directory / "model", adapters.directory / "model", adapters.directory / "adapter"):
        files = [file for file in folder.iterdir() if file.suffix in (".json", ".safetensors")]
        assert len(files) > 1 and len({stat.S_IMODE(file.stat().st_mode) for file in files}) == 1


def test_model_loads_with_transformers(full):
    from transformers import AutoTokenizer

    model = load_plain(str(full.directory / "model"))
    _check_scores(full.scores, model)
    tied = model.config.tie_word_embeddings
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert ("lm_head.weight" in full.exported) != tied
    tokenizer = AutoTokenizer.from_pretrained(full.directory / "model")
    assert tokenizer.decode(tokenizer("12+34").input_ids) == "12+34"


def test_reference_of_full_training_is_the_start(full):
    _check_scores(full.reference, load_plain(full.base))


def test_adapters_of_experts_learn_and_nothing_else_does(experts):
    changed = {name for name, before in experts.parameters_before.items() if not np.array_equal(experts.parameters[name], before)}
    assert changed == {name for name in experts.parameters if ".lora_" in name}
    assert sum(".mlp.experts." in name for name in changed) == 2 * 2 * 2, "A and B of both parameters in both layers"
    _check_scores(experts.reference, load_plain(experts.base))
    assert max(np.abs(experts.scores[n] - experts.reference[n]).max() for n in experts.scores) > 0.1


def test_adapters_of_experts_compute_the_same_beside_the_base_and_merged(experts, tmp_path):
    """By training, and by `rlflow export --merge`."""
    from peft import PeftModel

    adapter, exported = experts.directory / "adapter", tmp_path / "exported"
    _check_scores(experts.scores, PeftModel.from_pretrained(load_plain(experts.base), str(adapter)))
    _check_scores(experts.scores, load_plain(str(experts.directory / "model")))
    ran = CliRunner().invoke(app, ["export", str(adapter), "--merge", "--output", str(exported)])
    assert ran.exit_code == 0, ran.output
    _check_scores(experts.scores, load_plain(str(exported)))


# ---- in the processes of the ranks


def train_and_save(rank: Rank, model: ModelSpec, spec: LearnerSpec, directory: Path) -> dict[str, Any]:
    """What `Trained` holds of this rank."""
    learner = rank.build(model, spec, temperature=TEMPERATURE, keep_reference=True, bucket_bytes=50_000)
    batch = _batch()
    before = {
        "parameters_before": _parameters(learner),
        "exported_before": rank.weights(),
        "scores_before": _score(learner, batch),
    }
    norms = [
        learner.train_step(step, batch.sequences, PolicyLoss(), learning_rate=0.02)["grad_norm"] for step in batch.plan.plan.steps
    ]
    learner.save_model(directory / "model", build_character_tokenizer("0123456789+"))
    after = {"parameters": _parameters(learner), "exported": rank.weights(), "scores": _score(learner, batch)}
    return {**before, **after, "norms": norms, "reference": _score(learner, batch, reference=True)}


def _batch() -> StoredBatch:
    return stored_batch(num_ranks=2)


def _parameters(learner: Any) -> Arrays:
    named = dict(learner._model.model.named_parameters())
    with gathered(list(named.values())):
        return {name: parameter.detach().numpy().copy() for name, parameter in named.items()}


def _score(learner: Any, batch: StoredBatch, **options: Any) -> Arrays:
    scores = [learner.score(step, batch.sequences, **options) for step in batch.plan.plan.steps]
    return {number: values.numpy() for step in scores for number, values in step.items()}


# ---- in the test


def _train(layout: str, ranks: RankGroup, directory: Path, lora: LoraSpec | None) -> Trained:
    kind, stage = layout.split("-")
    base = save_tiny_model(directory / "base", tied=kind == "tied", experts=4 if kind == "experts" else 0)
    model = ModelSpec(path=base, dtype="float32", lora=lora)
    spec = LearnerSpec(zero_stage=int(stage), micro_batch_tokens=512, timeout_s=60.0)  # pyright: ignore
    first, second = ranks.run(train_and_save, model, spec, directory)
    both = {name: {**first[name], **second[name]} for name in first if name != "norms"}
    return Trained(base, directory, first["norms"], **both)


def _check_scores(scores: Arrays, model: Any) -> None:
    batch = _batch()
    assert scores.keys() == set(batch.sequences)
    with torch.no_grad():
        for number, sequence in batch.sequences.items():
            np.testing.assert_allclose(scores[number], plain_logprobs(model, sequence), atol=TOLERANCE)


def _peft_name(name: str) -> str:
    return f"base_model.model.{name}"


def _base_name(name: str, trained: Trained) -> str:
    """A checkpoint's name of a parameter -> its name in the model with adapters."""
    plain = _peft_name(name)
    return plain if plain in trained.parameters else plain.replace(".weight", ".base_layer.weight")
