"""Moving a learner's states off its device and back."""

import gc
from typing import Any, Literal

import torch
from torch import nn

State = Literal["offloaded", "weights", "full"]


class StateMover:
    """Brings a DeepSpeed engine's states to one of three places.

    full: everything on the device; weights: optimiser, master weights and gradients in pinned host memory; offloaded: this rank's
    weights too. DeepSpeed moves the former (it insists on FusedAdam for that); the weights are moved here, because
    `reload_states` knows all or nothing.
    """

    def __init__(self, engine: Any, model: nn.Module, *, on_gpu: bool) -> None:
        self._engine = engine
        self._parameters: list[Any] = list(model.parameters())  # ZeRO-3 adds `ds_tensor`
        self.can_offload = on_gpu and type(engine.optimizer).__name__.startswith("DeepSpeedZeroOptimizer_Stage3")
        """Whether states can leave the device."""
        self._state: State = "full"
        self._mirrors: list[torch.Tensor] = []

    def move(self, state: State) -> float:
        """Go to `state`. Returns the device memory in use by all processes, in GiB."""
        order = ("offloaded", "weights", "full")
        while self._state != state:
            position = order.index(self._state)
            step = 1 if order.index(state) > position else -1
            self._go(order[position + step])
        gc.collect()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 2**30

    def _go(self, state: State) -> None:
        from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum as Kind

        if (self._state, state) == ("full", "weights"):
            self._engine.optimizer.empty_partition_cache()
            self._engine.offload_states(
                include=[Kind.optim_states, Kind.hp_params, Kind.lp_grads, Kind.contiguous_grad_buffer],
                non_blocking=False,
            )
        elif (self._state, state) == ("weights", "full"):
            self._engine.reload_states()
        elif (self._state, state) == ("weights", "offloaded"):
            self._offload_weights()
        else:
            self._reload_weights()
        self._state = state

    def _offload_weights(self) -> None:
        shards = [parameter.ds_tensor for parameter in self._parameters]
        if not self._mirrors:
            self._mirrors = [torch.empty(s.shape, dtype=s.dtype, pin_memory=True) for s in shards]
        for shard, mirror in zip(shards, self._mirrors, strict=True):
            mirror.copy_(shard, non_blocking=True)
        torch.cuda.synchronize()
        for shard, mirror in zip(shards, self._mirrors, strict=True):
            shard.data = mirror

    def _reload_weights(self) -> None:
        for parameter, mirror in zip(self._parameters, self._mirrors, strict=True):
            parameter.ds_tensor.data = mirror.to("cuda", non_blocking=True)
        torch.cuda.synchronize()
