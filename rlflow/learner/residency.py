"""Moving a learner's states off its device and back."""

import itertools
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, UntypedStorage, nn

State = Literal["offloaded", "weights", "full"]
_GRADIENT_BUFFERS = ("grad_partitions_flat_buffer", "fp32_groups_gradients_flat")
"""DeepSpeed's gradient memory that outlives a step (ZeRO-3; bf16 at ZeRO-1). Its content does not."""
_ZERO_3_MASTERS = "fp32_partitioned_groups_flat"
"""ZeRO-3 shows its master weights to the optimiser only while it steps."""


class StateMover:
    """Brings a DeepSpeed engine's states to one of three places.

    full: everything on the device, the optimiser's part from `arrive` on; weights: optimiser states and master weights in host
    memory, gradients nowhere; offloaded: this rank's weights in host memory too. A storage is emptied and filled again in
    place, so that every view of it stays valid, at any ZeRO stage and with any optimiser. (DeepSpeed's own `offload_states`
    knows stage 3 with FusedAdam, and keeps the flat buffer of the weights on the device.)
    """

    def __init__(self, engine: Any, model: nn.Module) -> None:
        self._optimizer: Any = getattr(engine, "optimizer", None)  # a frozen model has none
        self._parameters: list[Any] = list(model.parameters())  # ZeRO-3 adds `ds_tensor`
        self._device = self._parameters[0].device.type
        self._weights, self._training, self._gradients = _Mirror(), _Mirror(), _Mirror(keeps_content=False)
        self._transfer = torch.cuda.Stream() if self._device == "cuda" else None
        """Where the optimiser's part comes back, while the passes before its step run."""

    def move(self, state: State) -> None:
        """Go to `state`. To `full`, the optimiser's part has its memory back, and `arrive` brings its content."""
        self.arrive()
        if state != "full" and hasattr(self._optimizer, "empty_partition_cache"):
            self._optimizer.empty_partition_cache()
        self._place(self._gradients, self._gradient_tensors(), on_device=state == "full")
        if state == "full":
            self._training.allocate()
        else:
            self._place(self._training, self._training_tensors(), on_device=False)
        self._place(self._weights, self._weight_tensors(), on_device=state != "offloaded")
        if self._device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    def begin_arrival(self) -> None:
        """Let the optimiser's part come back beside what runs next. Copies to the device that are asked for later wait for it."""
        if self._transfer is not None and self._training.is_allocated:
            with torch.cuda.stream(self._transfer):
                self._training.fill()

    def arrive(self) -> None:
        """The optimiser's part of `full` is there for what runs from now on."""
        self.begin_arrival()
        if self._transfer is not None:
            torch.cuda.current_stream().wait_stream(self._transfer)
        elif self._training.is_allocated:
            self._training.fill()

    def close(self) -> None:
        """Nothing moves any more: memory that is being filled must not be freed."""
        self.arrive()
        if self._device == "cuda":
            torch.cuda.synchronize()

    def _place(self, mirror: "_Mirror", tensors: Iterable[Tensor], *, on_device: bool) -> None:
        if on_device:
            mirror.restore()
        else:
            mirror.take(tensor for tensor in tensors if tensor.device.type == self._device)

    def _weight_tensors(self) -> Iterator[Tensor]:
        return (getattr(parameter, "ds_tensor", parameter.data) for parameter in self._parameters)

    def _training_tensors(self) -> Iterator[Tensor]:
        """The master weights (in float32 at stage 0 the weights are these, and stay), and from the first step on the moments."""
        weights = {tensor.untyped_storage().data_ptr() for tensor in self._weight_tensors()}
        optimizer = _torch_optimizer(self._optimizer)
        groups = [group["params"] for group in getattr(optimizer, "param_groups", ())]
        masters = [*itertools.chain(*groups), *_tensors(getattr(self._optimizer, _ZERO_3_MASTERS, None))]
        yield from (master for master in masters if master.untyped_storage().data_ptr() not in weights)
        for state in getattr(optimizer, "state", {}).values():
            yield from (value for value in state.values() if isinstance(value, Tensor))

    def _gradient_tensors(self) -> Iterator[Tensor]:
        optimizer = self._optimizer
        for name in _GRADIENT_BUFFERS:
            yield from _tensors(getattr(optimizer, name, None))
        for bucket in getattr(optimizer, "ipg_buckets", {}).values():
            yield from _tensors(bucket.buffer)


class _Mirror:
    """Host copies of device storages; while they are taken, the storages hold no memory."""

    def __init__(self, *, keeps_content: bool = True) -> None:
        self._keeps_content = keeps_content
        self._taken: list[tuple[UntypedStorage, int]] = []
        self.is_allocated = False
        """Whether the storages have memory again, but not their content."""
        self._copies: list[Tensor] = []

    def take(self, tensors: Iterable[Tensor]) -> None:
        """Empty the tensors' storages, unless they are taken."""
        if self._taken:
            return
        storages = {storage.data_ptr(): storage for t in tensors if (storage := t.untyped_storage()).nbytes()}
        self._taken = [(storage, storage.nbytes()) for storage in storages.values()]
        if self._keeps_content:
            self._copy_to_host()
        for storage, _ in self._taken:
            storage.resize_(0)

    def restore(self) -> None:
        """Give the storages their memory back, with their content or zeros."""
        self.allocate()
        self.fill()

    def allocate(self) -> None:
        """Give the storages their memory back; `fill` is to follow."""
        for storage, num_bytes in self._taken:
            storage.resize_(num_bytes)
        self.is_allocated = bool(self._taken)

    def fill(self) -> None:
        """Put the content, or zeros, in memory that has been allocated."""
        for index, (storage, _) in enumerate(self._taken):
            if self._keeps_content:
                _bytes_of(storage).copy_(self._copies[index], non_blocking=True)
            else:
                _bytes_of(storage).zero_()
        self._taken, self.is_allocated = [], False

    def _copy_to_host(self) -> None:
        known = self._copies  # page-locking takes time, and the moments come later than the rest
        fits = [i < len(known) and known[i].numel() == num_bytes for i, (_, num_bytes) in enumerate(self._taken)]
        self._copies = [known[i] if fits[i] else _pinned(num_bytes) for i, (_, num_bytes) in enumerate(self._taken)]
        for copy, (storage, _) in zip(self._copies, self._taken, strict=True):
            copy.copy_(_bytes_of(storage), non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()


def _torch_optimizer(optimizer: Any) -> Any:
    return getattr(optimizer, "optimizer", optimizer)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for tensor in value or () if isinstance(tensor, Tensor)]


def _bytes_of(storage: UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _cudart() -> Any:
    return torch.cuda.cudart()


def _pinned(num_bytes: int) -> Tensor:
    """Page-locked memory of exactly this size. (torch's allocator rounds up to powers of two.)"""
    memory = torch.empty(num_bytes, dtype=torch.uint8)
    if torch.cuda.is_available():
        status = _cudart().cudaHostRegister(memory.data_ptr(), num_bytes, 0)
        if int(status) != 0:
            raise MemoryError(f"{num_bytes / 2**30:.1f} GiB of host memory could not be page-locked: CUDA error {int(status)}")
        # Before it is freed: copies of other memory that comes to lie there, partly locked, would fail.
        weakref.finalize(memory, _cudart().cudaHostUnregister, memory.data_ptr()).atexit = False
    return memory
