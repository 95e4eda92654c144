"""Whole weights out of a partitioned model: bucket by bucket for the rollout engines, and as a model directory."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlflow.learner.expert_parallel import SpreadExperts, spread_experts
from rlflow.learner.quantization import dequantised, is_quantised, without_quantiser
from rlflow.weights.buckets import Bucket, TensorDescription, plan_buckets
from rlflow.weights.buffers import BufferHandle, SendBuffer, allocate, slot_view

BUCKET_BYTES = 2**30
"""Size of a bucket; a larger tensor makes a larger one. A bucket costs some 15 ms beside the copy (H100)."""


@dataclass(frozen=True, slots=True)
class _Adapter:
    """What is added to a parameter: `merge` takes the whole parameter and gives it with the adapter, in float32."""

    parameters: tuple[nn.Parameter, ...]
    merge: Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class _Export:
    """A parameter under its checkpoint name, with the adapter to merge into it."""

    parameter: nn.Parameter
    adapter: _Adapter | None

    @property
    def parts(self) -> list[nn.Parameter]:
        return [self.parameter, *(self.adapter.parameters if self.adapter else ())]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole parameter."""
        if is_quantised(self.parameter):
            return tuple(self.parameter.quant_state.shape)  # pyright: ignore[reportAttributeAccessIssue]
        return tuple(getattr(self.parameter, "ds_shape", self.parameter.shape))

    @property
    def dtype(self) -> torch.dtype:
        """Data type; of what was quantised, that it was loaded in."""
        if is_quantised(self.parameter):
            return self.parameter.quant_state.dtype  # pyright: ignore[reportAttributeAccessIssue]
        return self.parameter.dtype

    def write(self, out: Tensor) -> None:
        """Copy the gathered parameter, dequantised, adapters merged in float32."""
        whole = dequantised(self.parameter) if is_quantised(self.parameter) else self.parameter
        out.copy_(whole if self.adapter is None else self.adapter.merge(whole))


class WeightExporter:
    """Exports the weights of a transformers model (dequantised, adapters merged), whole or partitioned by ZeRO-3.

    Every method that gathers is collective: all ranks call it in the same order.
    """

    def __init__(self, model: Any, bucket_bytes: int = BUCKET_BYTES) -> None:
        self._causal_lm = model.get_base_model() if hasattr(model, "peft_config") else model
        self._model = model
        self._exports = dict(_named_exports(self._causal_lm))
        self.buckets: tuple[Bucket, ...] = plan_buckets(
            [_describe(name, export) for name, export in self._exports.items()], bucket_bytes
        )
        self._buffer: SendBuffer | None = None

    def write_bucket(self, index: int) -> BufferHandle:
        """Gather bucket `index` into the send buffer; it must have been read before the next call."""
        if self._buffer is None:
            self._buffer = allocate(max(bucket.num_bytes for bucket in self.buckets))
        self._gather_into(self.buckets[index], self._buffer.bytes_B)
        return self._buffer.handle()

    def release(self) -> None:
        """Free the send buffer."""
        if self._buffer is not None:
            self._buffer.close()
            self._buffer = None

    def save(self, directory: Path, tokenizer: Any, *, is_writer: bool) -> None:
        """Write a transformers model directory with adapters merged; the adapters alone go to `directory`/../adapter."""
        state = self.whole_state(is_writer=is_writer)
        if is_writer:
            directory.mkdir(parents=True, exist_ok=True)
            save_pretrained(self._causal_lm, state, directory)
            tokenizer.save_pretrained(directory)
        if self._model is not self._causal_lm:
            self._save_adapter(directory.parent / "adapter", is_writer=is_writer)

    def whole_state(self, *, is_writer: bool = True) -> dict[str, Tensor]:
        """Every weight by its checkpoint name in host memory, adapters merged; empty where `is_writer` is false."""
        state: dict[str, Tensor] = {}
        for bucket in self.buckets:
            scratch = torch.empty(bucket.num_bytes, dtype=torch.uint8, device=self._device())
            self._gather_into(bucket, scratch)
            if is_writer:
                host = scratch.cpu()
                state.update({s.name: slot_view(host, s.offset, s.num_bytes, s.dtype, s.shape) for s in bucket.slots})
        return state

    def _gather_into(self, bucket: Bucket, memory: Tensor) -> None:
        exports = [self._exports[slot.name] for slot in bucket.slots]
        with torch.no_grad(), gathered([part for export in exports for part in export.parts]):
            for slot, export in zip(bucket.slots, exports, strict=True):
                export.write(slot_view(memory, slot.offset, slot.num_bytes, slot.dtype, slot.shape))

    def _save_adapter(self, directory: Path, *, is_writer: bool) -> None:
        from peft import get_peft_model_state_dict

        named = {name: p for name, p in self._model.named_parameters() if "lora_" in name or ".modules_to_save." in name}
        with gathered(list(named.values())):
            if is_writer:
                state = get_peft_model_state_dict(self._model, {n: p.detach().cpu().clone() for n, p in named.items()})
                shutil.rmtree(directory, ignore_errors=True)
                _write_adapter(self._model, state, directory)

    def _device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def gathered(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Inside, the parameters are whole on every rank, for reading. Collective under ZeRO-3, free otherwise."""
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        yield
        return
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters

    with GatheredParameters(list(parameters)):
        yield


def _named_exports(causal_lm: nn.Module) -> Iterator[tuple[str, _Export | SpreadExperts]]:
    """Parameters by checkpoint name, in the order of the modules; tied ones once. Experts that are spread come last."""
    spread = {f"{layer}.{name}": (layer, value) for layer, name, value in spread_experts(causal_lm)}
    layers = tuple(f"{layer}." for layer in {layer for layer, _ in spread.values()})
    adapters = {
        _adapted_parameter(name, module): module
        for name, module in causal_lm.named_modules()
        if hasattr(module, "lora_A") and hasattr(module, "base_layer")
    }
    for name, parameter in causal_lm.named_parameters():
        if ".lora_" in name or ".original_module." in name or name.startswith(layers):
            continue
        # A head trained in full beside adapters; and layers inside their adapters, experts inside two of them.
        plain = name.replace(".modules_to_save.default.", ".").replace(".base_layer", "")
        yield plain, _Export(parameter, _adapter_of(adapters[plain]) if plain in adapters else None)
    for name, (_, value) in spread.items():
        yield name, value if isinstance(value, SpreadExperts) else _Export(value, None)


def _adapted_parameter(name: str, module: Any) -> str:
    """Checkpoint name of the parameter that an adapter belongs to; for experts peft wraps the parameter, not its module."""
    return f"{name.replace('.base_layer', '')}.{getattr(module, 'parameter_name', 'weight')}"


def _adapter_of(layer: Any) -> _Adapter:
    down, up, scale = layer.lora_A["default"].weight, layer.lora_B["default"].weight, float(layer.scaling["default"])
    if hasattr(layer, "parameter_name"):
        return _Adapter((down, up), lambda weight: weight.float() + layer.get_delta_weight("default").float())
    return _Adapter((down, up), lambda weight: torch.addmm(weight.float(), up.float(), down.float(), alpha=scale))


def _describe(name: str, export: _Export | SpreadExperts) -> TensorDescription:
    return TensorDescription(name, str(export.dtype).removeprefix("torch."), export.shape, export.dtype.itemsize)


def save_pretrained(causal_lm: Any, state: dict[str, Tensor], directory: Path, **options: Any) -> None:
    """Write weights and configuration as transformers does; the attention function of this process is not part of them."""
    attention = causal_lm.config._attn_implementation
    causal_lm.config._attn_implementation = None
    try:
        with without_quantiser(causal_lm):
            causal_lm.save_pretrained(directory, state_dict=state, is_main_process=True, **options)
    finally:
        causal_lm.config._attn_implementation = attention
    let_others_read(directory, "config.json")


def _write_adapter(model: Any, state: dict[str, Tensor], directory: Path) -> None:
    from safetensors.torch import save_file

    directory.mkdir(parents=True)
    save_file(state, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    model.peft_config["default"].save_pretrained(directory)
    let_others_read(directory, "adapter_config.json")


def let_others_read(directory: Path, example: str) -> None:
    """safetensors makes files that their owner alone may read; give them the mode of `example`, which lies beside them."""
    for file in directory.glob("*.safetensors"):
        shutil.copymode(directory / example, file)
