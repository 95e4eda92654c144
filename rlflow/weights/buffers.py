"""Memory that another process on the same device can open: where a bucket is written and read.

On CPU it is an anonymous file in memory (memfd), reached through the owner's /proc entry: it ends with its owner, even a
killed one, and leaves nothing in shared memory. On a GPU it is ordinary device memory, opened through CUDA IPC.
"""

import mmap
import os
import pickle
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rlflow.errors import WeightSyncError
from rlflow.weights.buckets import Bucket


@dataclass(frozen=True, slots=True)
class BufferHandle:
    """Names a buffer to another process on the same device."""

    device: str
    """`device_key()` of the memory."""
    payload: bytes


class SendBuffer(Protocol):
    """Memory of the sender."""

    bytes_B: Tensor
    """uint8 [B], written by the sender."""

    def handle(self) -> BufferHandle:
        """A handle to open the memory elsewhere."""
        ...

    def close(self) -> None:
        """Free the memory."""
        ...


def device_key() -> str:
    """Identifies the memory this process computes in: the GPU's UUID, or `cpu`."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    return "cpu"


def device_memory_gib() -> float:
    """Memory in use on this process's GPU by all processes, in GiB; 0 on CPU."""
    if not torch.cuda.is_available():
        return 0.0
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 2**30


def allocate(num_bytes: int) -> SendBuffer:
    """A send buffer on this process's device."""
    return _CudaBuffer(num_bytes) if torch.cuda.is_available() else _HostBuffer(num_bytes)


def open_buffer(handle: BufferHandle) -> Tensor:
    """The sender's memory as a uint8 tensor [B]; it stays valid while the sender keeps it."""
    here = device_key()
    if handle.device != here:
        raise WeightSyncError(f"a weight buffer of device {handle.device} was handed to an engine on {here}")
    return _open_cuda(handle.payload) if here != "cpu" else _open_host(handle.payload)


def read_bucket(bytes_B: Tensor, bucket: Bucket) -> list[tuple[str, Tensor]]:
    """The bucket's tensors as views of the memory."""
    return [(slot.name, slot_view(bytes_B, slot.offset, slot.num_bytes, slot.dtype, slot.shape)) for slot in bucket.slots]


def slot_view(bytes_B: Tensor, offset: int, num_bytes: int, dtype: str, shape: tuple[int, ...]) -> Tensor:
    """A typed view of a part of the memory."""
    return bytes_B[offset : offset + num_bytes].view(getattr(torch, dtype)).view(shape)


class _HostBuffer:
    def __init__(self, num_bytes: int) -> None:
        self._file = os.memfd_create("rlflow-weights")
        os.ftruncate(self._file, num_bytes)
        self.bytes_B = _map(self._file, num_bytes)

    def handle(self) -> BufferHandle:
        return BufferHandle("cpu", f"/proc/{os.getpid()}/fd/{self._file}".encode())

    def close(self) -> None:
        os.close(self._file)


def _open_host(payload: bytes) -> Tensor:
    try:
        file = os.open(payload.decode(), os.O_RDWR)
    except OSError as error:
        raise WeightSyncError(f"the learner's weight buffer cannot be opened: {error}; is it on another node?") from None
    try:
        return _map(file, os.fstat(file).st_size)
    finally:
        os.close(file)


def _map(file: int, num_bytes: int) -> Tensor:
    return torch.frombuffer(mmap.mmap(file, num_bytes), dtype=torch.uint8)


class _CudaBuffer:
    def __init__(self, num_bytes: int) -> None:
        _refuse_expandable_segments()
        self.bytes_B = torch.empty(num_bytes, dtype=torch.uint8, device="cuda")

    def handle(self) -> BufferHandle:
        from torch.multiprocessing.reductions import reduce_tensor

        torch.cuda.synchronize()
        return BufferHandle(device_key(), pickle.dumps(reduce_tensor(self.bytes_B)))

    def close(self) -> None:
        del self.bytes_B
        torch.cuda.ipc_collect()


def _open_cuda(payload: bytes) -> Tensor:
    rebuild, arguments = pickle.loads(payload)
    arguments = list(arguments)
    arguments[6] = torch.cuda.current_device()  # the device's index here, not at the sender
    return rebuild(*arguments)


def _refuse_expandable_segments() -> None:
    settings = os.environ.get("PYTORCH_ALLOC_CONF", "") + os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "")
    if "expandable_segments:true" in settings.lower().replace(" ", ""):
        raise WeightSyncError(
            "expandable_segments is set in the allocator configuration: its memory cannot be shared through CUDA IPC; unset it"
        )
