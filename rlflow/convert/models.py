"""What a model is, as far as its name or its directory tells."""

import json
import re
from pathlib import Path

_MIXTURE = re.compile(r"-a\d+(\.\d+)?b(-|$)|moe|mixtral")


def is_hybrid(model: str) -> bool:
    """Whether a Qwen3 model thinks or not, as it is asked to (a guess from its name)."""
    name = _name_of(model)
    return name.startswith("qwen3-") and not any(
        word in name for word in ("base", "2507", "coder", "embedding", "reranker", "next")
    )


def is_mixture(model: str) -> bool:
    """Whether a model is a mixture of experts: its config.json says it if it is here, else its name (`-A3B`, `MoE`)."""
    config = Path(model) / "config.json"
    if config.is_file():
        return bool(json.loads(config.read_text(encoding="utf-8")).get("num_experts_per_tok"))
    return _MIXTURE.search(_name_of(model)) is not None


def _name_of(model: str) -> str:
    return model.rstrip("/").rpartition("/")[2].lower()
