"""How the learner group trains: parallelism, optimiser, schedule, batching."""

from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field, model_validator

from rlflow.spec.base import Spec


class OptimizerSpec(Spec):
    """AdamW (Loshchilov & Hutter 2019)."""

    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the first and second moment (ms-swift default)."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Added to the denominator."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay (ms-swift default)."""


class ScheduleSpec(Spec):
    """The learning rate over optimiser steps: linear warm-up, then the named decay to `min_learning_rate`."""

    type: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the decay after warm-up."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Optimiser steps of linear warm-up from 0."""
    warmup_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Warm-up as a fraction of all optimiser steps, when `warmup_steps` is not set."""
    min_learning_rate: float = Field(default=0.0, ge=0)
    """Floor of the decay."""

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Self:
        if self.warmup_steps is not None and self.warmup_fraction:
            raise ValueError("set only one of warmup_steps and warmup_fraction")
        if self.type == "constant" and self.min_learning_rate:
            raise ValueError("min_learning_rate: a constant schedule does not decay; set type to linear or cosine")
        return self


class LearnerSpec(Spec):
    """The DeepSpeed learner group."""

    num_ranks: int = Field(default=1, ge=1)
    """Processes of the group; one GPU each where there are GPUs."""
    zero_stage: Literal["auto", 0, 1, 2, 3] = "auto"
    """ZeRO stage (Rajbhandari et al. 2020): what is partitioned over the ranks. 1: the optimiser, 2: gradients, 3: parameters.
    auto: the lowest that fits by the plan's estimate; a single rank partitions nothing, and 3 only slows it down."""
    offload_optimizer: bool = False
    """Keep the optimiser's states in host memory and update there, all the time."""
    optimizer: OptimizerSpec = OptimizerSpec()
    """AdamW settings."""
    schedule: ScheduleSpec = ScheduleSpec()
    """Learning-rate schedule."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Clip the global gradient norm to this value."""
    expert_parallel: int = Field(default=1, ge=1)
    """Ranks over which the experts of a mixture are spread, each rank holding some of them whole (DeepSpeed AutoEP); divides
    `num_ranks`. 1: every rank has all experts, partitioned as ZeRO does."""
    sequence_parallel: int = Field(default=1, ge=1)
    """Ranks that share each sequence, every one with a part of its tokens (DeepSpeed Ulysses); divides `num_ranks` and the
    attention heads. For sequences too long for one rank."""
    micro_batch_tokens: int = Field(default=16384, ge=1)
    """Most tokens through a rank's model at once (a longer sequence goes alone). Changes speed and memory, not the result."""
    packing: bool = True
    """Lay a micro-batch out as one row without padding (attention stays inside each sequence), or as padded rows."""
    gradient_checkpointing: Literal["auto", "full", "selective", "none"] = "auto"
    """Activations recomputed in the backward pass: a layer's all (full), all but its matrix products and attention (selective),
    or none; auto: as few as fit in memory by the plan's estimate (see `rlflow plan`)."""
    liger_kernel: bool | Literal["auto"] = "auto"
    """Liger's fused kernels for norms, rotary embeddings and SwiGLU; auto: on GPUs, where it is installed and knows the model."""
    router_aux_loss_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the load-balancing loss of a mixture of experts (Fedus et al. 2021, eq. 4), for each sequence by itself."""
    timeout_s: float = Field(default=1800.0, gt=0)
    """Limit of one collective operation between ranks, in seconds."""

    def contradictions(self) -> Iterator[str]:
        """Between the ways to use ranks."""
        for name in ("expert_parallel", "sequence_parallel"):
            if self.num_ranks % getattr(self, name):
                yield f"{name}: {self.num_ranks} ranks (num_ranks) cannot be divided by {getattr(self, name)}"
        if self.expert_parallel > 1 and self.sequence_parallel > 1:
            yield "expert_parallel, sequence_parallel: DeepSpeed's AutoEP does not go with shared sequences; set one of them to 1"
        if self.expert_parallel > 1 and self.zero_stage == 0:
            yield "expert_parallel: needs ZeRO stage 1 or higher, not zero_stage: 0"
        if self.sequence_parallel > 1 and not self.packing:
            yield "sequence_parallel: needs packing: true"
        if self.sequence_parallel > 1 and self.router_aux_loss_coefficient:
            yield "sequence_parallel: router_aux_loss_coefficient is of whole sequences, and each rank has a part; set it to 0"

    @model_validator(mode="after")
    def _floor_below_peak(self) -> Self:
        if self.schedule.min_learning_rate > self.optimizer.learning_rate:
            raise ValueError("schedule.min_learning_rate is above optimizer.learning_rate")
        return self
