"""Adapters merged into a model that is not being trained, and a model written anew; both checked by what they compute."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlflow.errors import UserError
from rlflow.learner.export import WeightExporter, save_pretrained

_PROBE_SHAPE = (4, 32)
_TOLERANCE = {torch.float32: 1e-3}
_ROUNDED_TOLERANCE = 0.1
"""Mean |difference| of log-probabilities where weights and activations are rounded to 16 bits, which alone gives up to 0.05."""


@dataclass(frozen=True, slots=True)
class MergeCheck:
    """Log-probabilities of a probe by the written model against those of the model with its adapters beside it, in nats."""

    mean_difference: float
    max_difference: float
    adapter_effect: float
    """Mean |difference| that the adapters make."""


def merge_adapter(
    base: str, adapter: Path, directory: Path, *, dtype: str | None = None, max_shard_size: str | None = None
) -> MergeCheck:
    """Write `base` with the adapters merged in float32, then load what was written and compare.

    `dtype`: of the result, and of the computation; that of the base if None. Raises `UserError` if the adapters do not fit the
    base, or if they compute something else when merged.
    """
    from peft import PeftModel

    model = _load(base, dtype)
    probe = _probe(model)
    without = _logprobs(model, probe)
    try:
        adapted = PeftModel.from_pretrained(model, str(adapter)).eval()
    except (ValueError, KeyError, RuntimeError, OSError) as error:
        raise UserError(f"adapter: {adapter} does not fit {base}: {' '.join(str(error).split())[:300]}") from None
    expected = _logprobs(adapted, probe)
    _save(adapted.get_base_model(), WeightExporter(adapted).whole_state(), directory, max_shard_size)
    difference = (_logprobs(_load(str(directory), dtype), probe) - expected).abs()
    check = MergeCheck(difference.mean().item(), difference.max().item(), (expected - without).abs().mean().item())
    limit = _TOLERANCE.get(model.dtype)
    if check.mean_difference > _ROUNDED_TOLERANCE if limit is None else check.max_difference > limit:
        raise UserError(
            f"adapter: merged into {base}, {adapter} computes something else than beside it (log-probabilities differ by "
            f"{check.max_difference:.2g}); only plain LoRA adapters can be merged"
        )
    return check


def rewrite_model(source: str, directory: Path, *, dtype: str | None, max_shard_size: str | None) -> None:
    """Write a model with another data type or other shards."""
    model = _load(source, dtype)
    _save(model, WeightExporter(model).whole_state(), directory, max_shard_size)


def _load(path: str, dtype: str | None) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        if getattr(AutoConfig.from_pretrained(path), "quantization_config", None):
            raise UserError(f"model: {path} is quantised; adapters are merged into, and models written from, unquantised weights")
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype or "auto").eval()
    except (OSError, ValueError) as error:
        raise UserError(f"model: cannot load {path}: {str(error).partition(chr(10))[0]}") from None


def _save(causal_lm: Any, state: dict[str, Tensor], directory: Path, max_shard_size: str | None) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    save_pretrained(causal_lm, state, directory, **({} if max_shard_size is None else {"max_shard_size": max_shard_size}))


def _probe(model: Any) -> Tensor:
    """Random tokens, int64 [4, 32]."""
    return torch.randint(model.config.vocab_size, _PROBE_SHAPE, generator=torch.Generator().manual_seed(0))


def _logprobs(model: Any, ids_BT: Tensor) -> Tensor:
    """Log-probabilities of the probe's next tokens, float32 [B, T-1]."""
    with torch.no_grad():
        logits = model(ids_BT.to(model.device), use_cache=False).logits[:, :-1].float()
    return torch.log_softmax(logits, -1).gather(-1, ids_BT[:, 1:, None].to(logits.device)).squeeze(-1).cpu()
