"""What can be known of a model without opening anything remote: its configuration and parameter count."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rlflow.data.characters import build_character_tokenizer
from rlflow.data.hugging_face_hub import cached_config, may_be_id
from rlflow.errors import SpecError, UserError
from rlflow.jobs.prepare import model_path
from rlflow.learner.load_model import model_config, packaged_shapes
from rlflow.spec.model import ModelSpec


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model's size, as far as memory and divisibility need it."""

    num_parameters: int
    embedding_parameters: int
    """Input embeddings, and the output head if it is not tied."""
    num_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    """Width of the feed-forward part that one token goes through: of all its experts together in a mixture of experts."""
    vocab_size: int
    max_position_embeddings: int | None
    num_experts: int = 0
    """Of each mixture; 0: there are none."""
    expert_parameters: int = 0
    """Of all experts together."""
    is_quantised: bool = False
    """Whether its files hold fewer bits than the parameters have."""


def model_facts(model: ModelSpec, runs: Path, field: str = "model") -> ModelFacts | None:
    """Facts of a random, local, cached or packaged model; None if it is unknown here. Raises `UserError` for a wrong one."""
    if model.random is not None:
        config = model_config(model.random)
        if model.random.characters is not None:
            config.vocab_size = len(build_character_tokenizer(model.random.characters))
        return _facts_of(json.dumps(config.to_dict()))
    file = _config_file(model, runs, field)
    return None if file is None else _facts_of(file.read_text(encoding="utf-8"))


def _config_file(model: ModelSpec, runs: Path, field: str) -> Path | None:
    path = model_path(model, runs, field)
    if Path(path).is_dir():
        file = Path(path) / "config.json"
        if not file.is_file():
            raise SpecError(f"{field}.path: {path} holds no config.json")
        return file
    if not may_be_id(path):
        raise SpecError(f"{field}.path: {path} does not exist")
    return _cached(path, model.revision, field) or packaged_shapes().get(path.rpartition("/")[2].lower())


def _cached(repository: str, revision: str | None, field: str) -> Path | None:
    from huggingface_hub.errors import HFValidationError

    try:
        return cached_config(repository, revision)
    except HFValidationError:
        raise SpecError(f"{field}.path: {repository} is neither a directory nor a hub id") from None


@cache
def _facts_of(config_json: str) -> ModelFacts:
    """Counted on a model without memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields: dict[str, Any] = json.loads(config_json)
    try:
        config = AutoConfig.for_model(**fields)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"model: not a causal language model that transformers knows: {error}") from None
    heads = config.num_attention_heads
    embeddings = {id(m.weight): m.weight.numel() for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    return ModelFacts(
        is_quantised="quantization_config" in fields,
        num_parameters=sum(p.numel() for p in model.parameters()),
        embedding_parameters=sum(embeddings.values()),
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_attention_heads=heads,
        num_key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        intermediate_size=_intermediate_size(config),
        num_experts=getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None) or 0,
        expert_parameters=sum(p.numel() for name, p in model.named_parameters() if ".experts." in name),
        vocab_size=config.vocab_size,
        max_position_embeddings=getattr(config, "max_position_embeddings", None),
    )


def _intermediate_size(config: Any) -> int:
    experts = getattr(config, "num_experts_per_tok", None)
    if experts and (width := getattr(config, "moe_intermediate_size", None)):
        return experts * width
    return getattr(config, "intermediate_size", None) or 4 * config.hidden_size
