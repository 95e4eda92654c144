"""The DeepSpeed configuration of a learner."""

from typing import Any

from rlflow.errors import SpecError
from rlflow.learner.expert_parallel import expert_parallel_config
from rlflow.spec.learner import LearnerSpec


def deepspeed_config(spec: LearnerSpec, *, dtype: str, on_gpu: bool) -> dict[str, Any]:
    """ZeRO with the accumulation of gradients in our hands: `step()` is called once, after all micro-batches.

    Raises `SpecError` for stage 0 with bfloat16: DeepSpeed cannot accumulate gradients in float32 there.

    torch's AdamW, fused on a GPU: DeepSpeed's own ones are compiled at first use (45 s). Only an optimiser that updates in host
    memory is DeepSpeed's.
    """
    if spec.zero_stage == 0 and dtype != "float32":
        raise SpecError(f"learner.zero_stage: 0 needs model.dtype float32, not {dtype}; use stage 1 or higher")
    offload = {"offload_optimizer": {"device": "cpu", "pin_memory": on_gpu}} if spec.offload_optimizer else {}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        # At stage 0 DeepSpeed does not report the norm it clips by; the learner clips there.
        "gradient_clipping": spec.max_grad_norm if spec.zero_stage else 0.0,
        "steps_per_print": 10**9,
        "zero_allow_untested_optimizer": True,
        "optimizer": {
            "type": "AdamW",
            "params": {**_adam(spec), **({} if spec.offload_optimizer else {"torch_adam": True, "fused": on_gpu})},
        },
        "zero_optimization": {
            "stage": spec.zero_stage,
            # Unmanaged accumulation allows overlap with stage 2 only.
            "overlap_comm": False,
            "contiguous_gradients": True,
            # Small parameters are partitioned too, so that the reference can be swapped in shard by shard.
            "stage3_param_persistence_threshold": 0,
            **offload,
        },
        **expert_parallel_config(spec.expert_parallel),
        **({"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}} if dtype == "bfloat16" else {}),
    }


def _adam(spec: LearnerSpec) -> dict[str, Any]:
    optimizer = spec.optimizer
    return {
        "lr": optimizer.learning_rate,
        "betas": list(optimizer.betas),
        "eps": optimizer.epsilon,
        "weight_decay": optimizer.weight_decay,
    }
