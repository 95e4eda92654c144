"""Copies to the device that the processor does not wait for."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The same values there. A copy from pageable memory would wait until the GPU has done all it was given before."""
    if device.type == "cpu" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
