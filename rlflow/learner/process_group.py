"""torch.distributed and DeepSpeed inside any process, without a launcher."""

import os
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RankInfo:
    """A rank's place in the learner group."""

    rank: int
    world_size: int
    master_address: str
    master_port: int


def import_libraries() -> None:
    """Import what takes long, without touching a device."""
    for name in ("deepspeed", "transformers"):
        import_module(name)


def join_process_group(info: RankInfo, timeout_s: float) -> torch.device:
    """Set up torch.distributed for DeepSpeed, and return this rank's device. The caller sees one GPU, or none."""
    on_gpu = torch.cuda.is_available()
    os.environ.update(
        RANK=str(info.rank),
        WORLD_SIZE=str(info.world_size),
        LOCAL_RANK="0",
        LOCAL_SIZE=str(info.world_size),
        MASTER_ADDR=info.master_address,
        MASTER_PORT=str(info.master_port),
    )
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if on_gpu else "cpu")
    import deepspeed

    # DeepSpeed's shared-memory all-reduce serves its inference engine only. Without this it is compiled at first use (30 s)
    # and leaves 69 MB a rank in /dev/shm.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo", timeout=timedelta(seconds=timeout_s), verbose=False)
    if on_gpu:
        torch.cuda.set_device(0)
    return torch.device("cuda", 0) if on_gpu else torch.device("cpu")


def sum_over_ranks(values: Tensor, device: torch.device) -> Tensor:
    """The sum of every rank's `values`, on the CPU (collective)."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    total = values.to(device)
    dist.all_reduce(total)
    return total.cpu()


def leave_process_group() -> None:
    """Tear torch.distributed down."""
    if dist.is_initialized():
        dist.destroy_process_group()
