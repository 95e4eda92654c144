"""Experts spread over ranks by DeepSpeed's AutoEP, which puts a layer of its own in the place of each mixture of experts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlflow.errors import LearnerError

_MIXTURES = r"(.+\.)?layers\.\d+\.mlp"
"""Modules that hold experts; DeepSpeed's own patterns expect the model without anything around it."""
_ROUTER = "router.gate.weight"


def expert_parallel_config(size: int) -> dict[str, Any]:
    """DeepSpeed's section for experts spread over `size` ranks; empty for 1."""
    return {"expert_parallel": {"enabled": True, "autoep_size": size, "moe_layer_pattern": _MIXTURES}} if size > 1 else {}


@dataclass(frozen=True, slots=True)
class SpreadExperts:
    """One tensor of all experts in transformers' layout, made of what each rank has: w1 (gate), w3 (up) or w2 (down)."""

    parts: tuple[nn.Parameter, ...]
    """Of this rank's experts, [E / ranks, out, in]; side by side along `out`."""
    group: Any
    """The ranks that have the others."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole tensor, [E, out, in]."""
        local = [tuple(getattr(part, "ds_shape", part.shape)) for part in self.parts]
        return (local[0][0] * dist.get_world_size(self.group), sum(shape[1] for shape in local), local[0][2])

    @property
    def dtype(self) -> torch.dtype:
        """Data type."""
        return self.parts[0].dtype

    def write(self, out: Tensor) -> None:
        """Gather the experts of all ranks (collective)."""
        own = torch.cat([part.data for part in self.parts], dim=1).contiguous()
        whole = [torch.empty_like(own) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(whole, own, group=self.group)
        torch.cat(whole, out=out)


def spread_experts(model: nn.Module) -> Iterator[tuple[str, str, nn.Parameter | SpreadExperts]]:
    """What AutoEP's layers hold, as (name of the layer, name in it as transformers has it, value).

    Raises `LearnerError` for experts beside the routed ones, which AutoEP renames.
    """
    from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer

    for name, layer in model.named_modules():
        if isinstance(layer, AutoEPMoELayer):
            if layer.shared_experts is not None:
                raise LearnerError(f"learner.expert_parallel: {name} has shared experts, which is not supported; set it to 1")
            experts: Any = layer.experts
            yield name, "gate.weight", layer.get_parameter(_ROUTER)
            yield name, "experts.gate_up_proj", SpreadExperts((experts.w1, experts.w3), layer.ep_group)
            yield name, "experts.down_proj", SpreadExperts((experts.w2,), layer.ep_group)
