"""Loading and creating models."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from rlflow.errors import LearnerError, SpecError
from rlflow.learner.activations import checkpoint_activations
from rlflow.learner.attention import NAME, register
from rlflow.learner.export import let_others_read
from rlflow.learner.liger import use_liger_kernels
from rlflow.learner.quantization import keep_layout, quantization_config
from rlflow.spec.learner import LearnerSpec
from rlflow.spec.model import LoraSpec, ModelSpec, RandomModelSpec


def packaged_shapes() -> dict[str, Path]:
    """Names of the shapes that come with rlflow, and their configuration files."""
    folder = Path(str(resources.files("rlflow.learner") / "shapes"))
    return {path.stem: path for path in sorted(folder.glob("*.json"))}


def model_config(spec: RandomModelSpec) -> Any:
    """The transformers configuration of a random model. Raises `SpecError` naming the field."""
    from transformers import AutoConfig

    fields = _config_fields(spec.config)
    if "model_type" not in fields:
        raise SpecError("model.random.config: model_type is missing")
    try:
        return AutoConfig.for_model(**fields)
    except (ValueError, TypeError) as error:
        raise SpecError(f"model.random.config: {error}") from None


def _config_fields(config: str | dict[str, Any]) -> dict[str, Any]:
    if isinstance(config, dict):
        return dict(config)
    shapes = packaged_shapes()
    path = shapes.get(config, Path(config))
    if not path.is_file():
        raise SpecError(f"model.random.config: {config} is neither a file nor a packaged shape ({', '.join(shapes)})")
    return json.loads(path.read_text())


def create_random_model(spec: RandomModelSpec, dtype: str, tokenizer: Any, directory: Path, device: str = "cpu") -> None:
    """Write a model with random weights, drawn on `device`, and its tokenizer, as a transformers model directory."""
    from transformers import AutoModelForCausalLM

    config = model_config(spec)
    if spec.characters is not None:
        config.vocab_size = len(tokenizer)
    config.eos_token_id, config.pad_token_id, config.bos_token_id = (
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
        None,
    )
    torch.manual_seed(spec.seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(directory)
    let_others_read(directory, "config.json")
    tokenizer.save_pretrained(directory)


def load_causal_lm(path: str, model: ModelSpec, learner: LearnerSpec) -> Any:
    """A language model for training, with adapters if the spec asks for them. Raises `LearnerError` if weights are missing.

    Under ZeRO stage 3 an `HfDeepSpeedConfig` must be alive: weights are then partitioned while they are loaded.
    """
    from transformers import AutoModelForCausalLM

    return _prepare(_load(AutoModelForCausalLM, path, model), model, learner, "CAUSAL_LM")


def load_value_model(path: str, model: ModelSpec, learner: LearnerSpec) -> Any:
    """The same with a scalar head. It is new, and zero, if `path` holds a language model."""
    from transformers import AutoModelForSequenceClassification

    loaded = _load(AutoModelForSequenceClassification, path, model, may_miss=("score.weight",), num_labels=1)
    return _prepare(loaded, model, learner, "SEQ_CLS")


def _load(factory: Any, path: str, model: ModelSpec, may_miss: tuple[str, ...] = (), **options: Any) -> Any:
    register()
    dtype = getattr(torch, model.dtype)
    if model.is_quantised:
        options["quantization_config"] = quantization_config(dtype)
    loaded, info = factory.from_pretrained(
        path,
        dtype=dtype,
        attn_implementation=NAME,
        trust_remote_code=model.trust_remote_code,
        output_loading_info=True,
        **options,
    )
    if model.is_quantised:
        keep_layout(loaded)
    absent = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
    missing = [key for key in absent if key not in may_miss]
    if missing:
        raise LearnerError(f"{path}: {len(missing)} weights are missing or have another shape, the first is {missing[0]}")
    if getattr(loaded.config, "num_experts_per_tok", None):
        loaded.set_experts_implementation(model.experts_implementation)
    if absent:
        _fill_with_zeros(loaded.score.weight)
    return loaded


def _fill_with_zeros(parameter: Any) -> None:
    """Whole, or its partition where ZeRO-3 has partitioned it."""
    with torch.no_grad():
        getattr(parameter, "ds_tensor", parameter.data).zero_()


def _prepare(loaded: Any, model: ModelSpec, learner: LearnerSpec, task_type: str) -> Any:
    use_liger_kernels(loaded, learner.liger_kernel)
    checkpoint_activations(loaded, learner.gradient_checkpointing)
    if model.lora is None:
        return loaded
    # Checkpointing needs an input with gradient, and so do ZeRO-3's hooks that gather the first layer for its backward pass.
    loaded.enable_input_require_grads()
    return _add_adapters(loaded, model.lora, task_type, learner)


def _add_adapters(model: Any, lora: LoraSpec, task_type: str, learner: LearnerSpec) -> Any:
    from peft import LoraConfig, get_peft_model

    has_experts = bool(getattr(model.config, "num_experts_per_tok", None))
    if has_experts and (problem := expert_adapter_problem(lora, learner)):
        raise SpecError(problem)
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]  (a float works as well)
        lora_dropout=lora.dropout,
        target_modules=targets,
        task_type=task_type,
    )
    return get_peft_model(model, config)


def expert_adapter_problem(lora: LoraSpec, learner: LearnerSpec) -> str | None:
    """Why a mixture's experts cannot be adapted so: they are one parameter, which peft adapts as a whole, and no linear layers,
    which is what bitsandbytes quantises.
    """
    if lora.quantization is not None:
        return "model.lora.quantization: a mixture's experts would stay as they are; leave it out"
    only = "or adapt attention alone with model.lora.target_modules: [q_proj, k_proj, v_proj, o_proj]"
    if lora.target_modules != "all-linear":
        return None
    if learner.zero_stage == 3:
        return f"learner.zero_stage: adapters of a mixture's experts are not supported with 3; use 2, {only}"
    if lora.dropout:
        return f"model.lora.dropout: adapters of a mixture's experts have none; set it to 0, {only}"
    return None
