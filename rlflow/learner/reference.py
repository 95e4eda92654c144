"""A frozen copy of the starting weights, without a second model: its shards wait in host memory and are swapped in."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class SwappedReference:
    """The reference of a model trained in full: this rank's shards of the weights at construction time."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = list(model.parameters())
        self._shards = [_host_copy(_shard(parameter)) for parameter in self._parameters]
        self._is_refreshed = False

    def refresh(self) -> None:
        """The model's present weights become the reference."""
        for parameter, shard in zip(self._parameters, self._shards, strict=True):
            shard.copy_(_shard(parameter))
        self._is_refreshed = True

    def save(self, file: Path) -> None:
        """Write this rank's shards, if they are others than those of the model at the start."""
        if self._is_refreshed:
            torch.save(self._shards, file)

    def load(self, file: Path) -> None:
        """Read what `save` wrote, if it wrote anything."""
        if not file.is_file():
            return
        for shard, saved in zip(self._shards, torch.load(file), strict=True):
            shard.copy_(saved)
        self._is_refreshed = True

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, the model computes with the reference's weights. Only for passes without gradient."""
        current = [_host_copy(_shard(parameter)) for parameter in self._parameters]
        self._write(self._shards)
        try:
            yield
        finally:
            self._write(current)

    def _write(self, shards: list[Tensor]) -> None:
        with torch.no_grad():
            for parameter, shard in zip(self._parameters, shards, strict=True):
                _shard(parameter).copy_(shard, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()


class AdapterReference:
    """The reference of a model trained through adapters: the same model with the adapters off."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, the adapters are off."""
        with self._model.disable_adapter():
            yield


def _shard(parameter: nn.Parameter) -> Tensor:
    """What this rank holds of the parameter: its ZeRO-3 partition, or all of it."""
    return getattr(parameter, "ds_tensor", parameter.data)


def _host_copy(tensor: Tensor) -> Tensor:
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda)
    return copy.copy_(tensor)
