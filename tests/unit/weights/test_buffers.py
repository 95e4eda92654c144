"""Buffers on a machine without GPU, opened across processes."""

import os
import pickle
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import rlflow
from rlflow.errors import WeightSyncError
from rlflow.weights.buckets import TensorDescription, plan_buckets
from rlflow.weights.buffers import BufferHandle, allocate, open_buffer, read_bucket, slot_view

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="these are the buffers of the processor")

OWNER = """
import pickle, sys
from rlflow.weights.buffers import allocate
buffer = allocate(1 << 20)
buffer.bytes_B[:4] = 7
print(pickle.dumps(buffer.handle()).hex(), flush=True)
for line in sys.stdin:
    buffer.bytes_B[:4] += 1
    print(int(buffer.bytes_B[-1]), flush=True)
"""


@contextmanager
def owner():
    """A process that owns a buffer; each line it is sent adds 1 to the first bytes and answers with the last byte."""
    environment = {**os.environ, "PYTHONPATH": str(Path(rlflow.__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        yield process, pickle.loads(bytes.fromhex(process.stdout.readline()))
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def ask(process):
    process.stdin.write("\n")
    process.stdin.flush()
    return int(process.stdout.readline())


def test_another_process_sees_writes_without_copying():
    with owner() as (process, handle):
        bytes_B = open_buffer(handle)
        assert (bytes_B.dtype, bytes_B.shape) == (torch.uint8, (1 << 20,))
        assert bytes_B[:5].tolist() == [7, 7, 7, 7, 0]
        ask(process)
        assert bytes_B[:5].tolist() == [8, 8, 8, 8, 0], "the same memory, not a copy"
        bytes_B[-1] = 99
        assert ask(process) == 99


def test_nothing_stays_behind_a_killed_owner():
    with owner() as (process, handle):
        bytes_B = open_buffer(handle)
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        assert "/memfd:rlflow-weights (deleted)" in maps, "memory without a name: it goes with its last user"
        assert "/dev/shm" not in maps
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert bytes_B[0] == 7, "whoever has it open keeps it"
        with pytest.raises(WeightSyncError, match="is it on another node"):
            open_buffer(handle)


def test_a_handle_is_small():
    buffer = allocate(1 << 20)
    assert len(pickle.dumps(buffer.handle())) < 300
    buffer.close()


def test_closing_frees_the_file():
    before = len(os.listdir("/proc/self/fd"))
    buffer = allocate(1 << 20)
    opened = open_buffer(buffer.handle())
    buffer.bytes_B[0] = 3
    buffer.close()
    assert len(os.listdir("/proc/self/fd")) <= before + 2, "mappings may hold a descriptor, the buffer none"
    assert opened[0] == 3
    del buffer, opened
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_handle_of_another_device_is_refused():
    with pytest.raises(WeightSyncError, match="device GPU-1 was handed to an engine on cpu"):
        open_buffer(BufferHandle("GPU-1", b""))


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_expandable_segments_are_refused_with_the_reason(monkeypatch, name):
    monkeypatch.setenv(name, "max_split_size_mb:128, expandable_segments: True")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(WeightSyncError, match=r"expandable_segments.*unset it"):
        allocate(16)


def test_tensors_come_out_as_they_went_in():
    weights = {
        "embedding": torch.randn(7, 5, dtype=torch.bfloat16),
        "norm": torch.randn(5),
        "scale": torch.tensor(2.5),
        "steps": torch.arange(3),
    }
    [bucket] = plan_buckets(
        [
            TensorDescription(name, str(t.dtype).removeprefix("torch."), tuple(t.shape), t.element_size())
            for name, t in weights.items()
        ],
        1 << 16,
    )
    buffer = allocate(bucket.num_bytes)
    for slot in bucket.slots:
        view = slot_view(buffer.bytes_B, slot.offset, slot.num_bytes, slot.dtype, slot.shape)
        view.copy_(weights[slot.name])
    received = read_bucket(open_buffer(buffer.handle()), bucket)
    assert [name for name, _ in received] == list(weights)
    for name, tensor in received:
        assert tensor.dtype == weights[name].dtype
        assert torch.equal(tensor, weights[name])
    buffer.bytes_B.zero_()
    assert all(not tensor.any() for _, tensor in received), "views, not copies"
    buffer.close()
