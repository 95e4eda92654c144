"""What a model's own generation config says about sampling."""

from pathlib import Path
from typing import Any

from rlflow.spec.rollout import GenerationSpec

_NEUTRAL: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}


def stop_token_ids(model_path: str) -> list[int]:
    """End-of-sequence tokens of the model's generation config (vLLM itself would also take its sampling defaults)."""
    config = _generation_config(model_path)
    ids = None if config is None else config.eos_token_id
    return list(ids) if isinstance(ids, list) else [] if ids is None else [ids]


def with_model_settings(spec: GenerationSpec, model_path: str) -> GenerationSpec:
    """The spec with every sampling setting decided: as given, else as the model's generation config says, else neutral."""
    config = _generation_config(model_path)
    own = {} if config is None else config.to_diff_dict()
    chosen = {
        name: neutral if own.get(name) is None else own[name] for name, neutral in _NEUTRAL.items() if getattr(spec, name) is None
    }
    return GenerationSpec.model_validate(spec.model_dump() | chosen)


def _generation_config(model_path: str) -> Any:
    from transformers import GenerationConfig

    if Path(model_path).is_dir() and not (Path(model_path) / "generation_config.json").is_file():
        return None
    try:
        return GenerationConfig.from_pretrained(model_path)
    except OSError:  # a model of the hub without the file
        return None
