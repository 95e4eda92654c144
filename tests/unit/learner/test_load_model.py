import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlflow.data.characters import build_character_tokenizer
from rlflow.errors import LearnerError, SpecError
from rlflow.learner.load_model import create_random_model, expert_adapter_problem, load_causal_lm, model_config, packaged_shapes
from rlflow.spec.learner import LearnerSpec
from rlflow.spec.model import LoraSpec, ModelSpec, RandomModelSpec

CHARACTERS = "0123456789+="
FIELDS = {
    "model_type": "qwen3",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 48,
    "tie_word_embeddings": True,
}


@pytest.fixture
def directory(tmp_path):
    _create(tmp_path / "model")
    return tmp_path / "model"


def _create(directory, seed: int = 5) -> None:
    spec = RandomModelSpec(config=FIELDS, characters=CHARACTERS, seed=seed)
    create_random_model(spec, "float32", build_character_tokenizer(CHARACTERS), directory)


def test_packaged_shapes_are_configurations():
    shapes = packaged_shapes()
    assert "qwen3-0.6b" in shapes
    for name in shapes:
        config = model_config(RandomModelSpec(config=name, characters=CHARACTERS))
        assert config.num_attention_heads % config.num_key_value_heads == 0, name


def test_a_configuration_can_be_a_file(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(FIELDS))
    spec = RandomModelSpec(config=str(tmp_path / "config.json"), characters=CHARACTERS)
    assert model_config(spec).hidden_size == 32


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("qwen3-0.7b", r"model\.random\.config: qwen3-0\.7b is neither a file nor a packaged shape \(qwen3-0\.6b, "),
        ({"hidden_size": 32}, r"model\.random\.config: model_type is missing"),
        ({"model_type": "qwen33"}, r"model\.random\.config: .*qwen33"),
    ],
)
def test_wrong_configurations_are_spec_errors(config, message):
    with pytest.raises(SpecError, match=message):
        model_config(RandomModelSpec(config=config, characters=CHARACTERS))


def test_a_random_model_fits_its_tokenizer_and_depends_on_the_seed_alone(directory, tmp_path):
    tokenizer = build_character_tokenizer(CHARACTERS)
    config = json.loads((directory / "config.json").read_text())
    assert config["vocab_size"] == len(tokenizer)
    generation = json.loads((directory / "generation_config.json").read_text())
    assert generation["eos_token_id"] == tokenizer.eos_token_id
    _create(tmp_path / "same")
    _create(tmp_path / "other", seed=6)
    weights, same, other = (load_file(d / "model.safetensors") for d in (directory, tmp_path / "same", tmp_path / "other"))
    assert all(torch.equal(tensor, same[name]) for name, tensor in weights.items())
    assert not torch.equal(weights["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_missing_weights_are_an_error(directory):
    weights = load_file(directory / "model.safetensors")
    del weights["model.layers.0.self_attn.q_proj.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    spec = ModelSpec(path=str(directory), dtype="float32")
    with pytest.raises(LearnerError, match=r"1 weights are missing .* model\.layers\.0\.self_attn\.q_proj\.weight"):
        load_causal_lm(str(directory), spec, LearnerSpec(gradient_checkpointing="none"))


def test_adapters_leave_the_head_alone(directory):
    spec = ModelSpec(path=str(directory), dtype="float32", lora=LoraSpec(rank=2))
    model = load_causal_lm(str(directory), spec, LearnerSpec(gradient_checkpointing="full"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 7 and all(".lora_" in name and "lm_head" not in name for name in trained)


@pytest.mark.parametrize(
    ("lora", "learner", "message"),
    [
        (LoraSpec(rank=2), LearnerSpec(zero_stage=3), r"learner\.zero_stage: .* use 2, or adapt attention alone"),
        (LoraSpec(rank=2, dropout=0.1), LearnerSpec(zero_stage=0), r"model\.lora\.dropout"),
    ],
)
def test_what_adapters_of_experts_cannot_do_is_said(tmp_path, lora, learner, message):
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    spec = RandomModelSpec(config=FIELDS | {"model_type": "qwen3_moe"} | experts, characters=CHARACTERS)
    create_random_model(spec, "float32", build_character_tokenizer(CHARACTERS), tmp_path)
    with pytest.raises(SpecError, match=message):
        load_causal_lm(str(tmp_path), ModelSpec(path=str(tmp_path), dtype="float32", lora=lora), learner)


def test_experts_are_not_quantised():
    problem = expert_adapter_problem(LoraSpec(target_modules=("q_proj",), quantization="nf4"), LearnerSpec(zero_stage=1))
    assert problem == "model.lora.quantization: a mixture's experts would stay as they are; leave it out"
