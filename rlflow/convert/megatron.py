"""`megatron sft`: ZeRO with grouped experts in the place of Megatron's parallelism."""

import math

from rlflow.convert.devices import Devices
from rlflow.convert.draft import Draft
from rlflow.convert.flags import Flag, Settings, boolean, integer, missing, number, part, same, text, to
from rlflow.convert.shared_flags import CACHED, DATA, MODEL, ONLY_MODELS
from rlflow.convert.sources import convert_data, convert_loss_scale, holds_out
from rlflow.convert.training import convert_best, convert_model, convert_run, packing_note
from rlflow.errors import UserError

_ZERO = "ZeRO partitions weights, gradients and optimiser over all ranks instead"
_OVERLAP = "DeepSpeed schedules its own communication"
_FUSED = "kernels are fused where that is faster"
_EXPERTS = "tokens are never dropped, and no capacity is set"

MEGATRON: dict[str, Flag] = {
    **MODEL,
    **DATA,
    **CACHED,
    "mcore_model": part(text),
    "tuner_type": part(text, "full"),
    "lora_rank": part(integer, 8),
    "lora_alpha": part(number, 32),
    "lora_dropout": part(number, 0.05),
    "target_modules": part(lambda given: list(given), ["all-linear"]),
    "bf16": part(boolean),
    "fp16": part(boolean),
    "micro_batch_size": part(integer, 1),
    "global_batch_size": to("batch_size", integer, 16),
    "train_iters": to("steps", integer),
    "max_epochs": part(number),
    "packing": part(boolean, False),
    "packing_length": part(integer),
    "padding_free": same("rows are packed without padding", boolean, (True,), "rows are packed without padding"),
    "loss_scale": part(text),
    # parallelism
    "tensor_model_parallel_size": part(integer, 1, changed=_ZERO),
    "pipeline_model_parallel_size": part(integer, 1, changed=_ZERO),
    "context_parallel_size": part(integer, 1),
    "expert_model_parallel_size": part(integer, 1),
    "expert_tensor_parallel_size": part(integer, 1, changed=_ZERO),
    "sequence_parallel": missing(
        "it goes with tensor parallelism, which is not used; activations are recomputed, packed rows split by tokens"
    ),
    "use_distributed_optimizer": same("ZeRO partitions the optimiser", boolean, (True,), "learner.zero_stage says it"),
    "optimizer_cpu_offload": to("learner.offload_optimizer", boolean),
    "overlap_grad_reduce": missing(_OVERLAP),
    "overlap_param_gather": missing(_OVERLAP),
    "tp_comm_overlap": missing(_OVERLAP),
    "distributed_timeout_minutes": part(number),
    # experts
    "moe_grouped_gemm": part(boolean),
    "moe_aux_loss_coeff": to(
        "learner.router_aux_loss_coefficient",
        number,
        0.0,
        changed="balanced within each sequence, so that the result does not depend on how a batch is cut",
    ),
    "moe_shared_expert_overlap": missing("models without a shared expert, such as Qwen3-30B-A3B, have nothing to overlap"),
    "moe_permute_fusion": missing(_FUSED),
    "moe_token_dispatcher_type": missing("DeepSpeed's own dispatch, or none"),
    "moe_enable_deepep": missing("DeepSpeed's own dispatch, or none"),
    "moe_z_loss_coeff": missing("the load-balancing loss is the only one", number, (0,)),
    "moe_expert_capacity_factor": missing(_EXPERTS),
    "moe_router_load_balancing_type": missing("the load-balancing loss is Switch Transformer's", text, ("aux_loss",)),
    "moe_router_dtype": missing("the router has the model's precision"),
    # recomputation and kernels
    "recompute_granularity": part(text),
    "recompute_method": part(text),
    "recompute_num_layers": part(integer),
    "recompute_modules": missing("selective keeps matrix products and attention"),
    "cross_entropy_loss_fusion": same("log-probabilities are fused with the output head", boolean, (True,), "they always are"),
    "cross_entropy_fusion_impl": missing(_FUSED),
    "attention_backend": missing("attention is chosen by what is installed and never crosses packed sequences"),
    "gradient_accumulation_fusion": missing(_FUSED),
    # optimiser
    "lr": to("learner.optimizer.learning_rate", number),
    "min_lr": part(number),
    "lr_decay_style": part(text, "cosine"),
    "lr_warmup_fraction": part(number),
    "lr_warmup_iters": to("learner.schedule.warmup_steps", integer),
    "weight_decay": to("learner.optimizer.weight_decay", number, 0.1),
    "adam_beta1": part(number, 0.9),
    "adam_beta2": part(number, 0.95),
    "adam_eps": to("learner.optimizer.epsilon", number, 1e-8),
    "clip_grad": to("learner.max_grad_norm", number, 1.0),
    # bookkeeping
    "output_dir": part(text),
    "run_name": part(text),
    "finetune": same("training starts at step 0 with a new optimiser", boolean, (True,), "running the same spec again goes on"),
    "save_steps": part(integer, 500),
    "save_total_limit": part(integer),
    "save_strategy": part(text, "steps"),
    "eval_steps": part(integer),
    "eval_iters": part(integer),
    "no_save_optim": to("run.keep_only_models", boolean, changed=ONLY_MODELS),
    "no_save_rng": missing("run.keep_only_models (no_save_optim) says whether training states are kept", boolean, (False,)),
    "no_load_optim": same("training starts with a new optimiser", boolean),
    "no_load_rng": same("training starts with run.seed", boolean),
    "async_save": missing("a checkpoint is whole before the next step"),
    "save_safetensors": same("models are written as safetensors", boolean),
    "load_safetensors": same("models are read as safetensors", boolean),
    "logging_steps": missing("every step is logged"),
    "tensorboard_dir": missing("all of a run lies in its directory"),
    "report_to": missing("metrics.jsonl, TensorBoard and Prometheus get every step"),
    "metric_for_best_model": part(text),
    "greater_is_better": part(boolean),
    "no_initialization": missing("weights are read from the model", boolean),
}

OLD_NAMES = {
    "load": "mcore_model",
    "save": "output_dir",
    "eval_interval": "eval_steps",
    "save_interval": "save_steps",
    "log_interval": "logging_steps",
    "num_workers": "dataloader_num_workers",
    "use_flash_attn": "attention_backend",
    "train_type": "tuner_type",
    "learning_rate": "lr",
    "num_train_epochs": "max_epochs",
}


def fewest_gpus(settings: Settings) -> int:
    """What the parallel sizes need: Megatron places experts over other ranks of the same GPUs."""
    dense = math.prod(settings[f"{name}_parallel_size"] for name in ("tensor_model", "pipeline_model", "context"))
    experts = settings["expert_model_parallel_size"] * settings["expert_tensor_parallel_size"]
    return math.lcm(dense, experts * settings["pipeline_model_parallel_size"])


def convert_megatron_sft(settings: Settings, draft: Draft, devices: Devices) -> None:
    """Everything that the table does not say."""
    if settings["model"] is None and settings["mcore_model"] is not None:
        settings.derive("model", name_model(settings["mcore_model"], draft, settings.written["mcore_model"]))
    convert_run(settings, draft)
    convert_model(settings, draft)
    convert_data(settings, draft, "data.max_tokens")
    convert_loss_scale(settings, draft)
    _parallelism(settings, draft, devices)
    _recomputation(settings, draft)
    _schedule(settings, draft)
    _evaluation(settings, draft)
    if settings["train_iters"] is None:
        draft.set("epochs", settings["max_epochs"] or 1)
    if settings["max_length"]:
        draft.set("learner.micro_batch_tokens", settings["micro_batch_size"] * settings["max_length"])
    if settings["packing"]:
        draft.note("warning", settings.written["packing"], packing_note(settings["global_batch_size"], settings["max_length"]))


def name_model(given: str, draft: Draft, written: str) -> str:
    """The Hugging Face model of Megatron weights, which the seed's tools name `<model>-mcore`."""
    name = given.rstrip("/").removesuffix("-mcore")
    if name == given.rstrip("/"):
        return name
    if name.startswith("Qwen") and "/" not in name:
        name = f"Qwen/{name}"
    draft.note("changed", written, f"Megatron's weights are not read; {name} is taken, as it is on the hub")
    return name


def _parallelism(settings: Settings, draft: Draft, devices: Devices) -> None:
    draft.set("learner.num_ranks", devices.gpus, given=False)
    draft.set("learner.expert_parallel", settings["expert_model_parallel_size"], given=False)
    draft.set("learner.sequence_parallel", settings["context_parallel_size"], given=False)
    grouped = settings["moe_grouped_gemm"]
    if grouped is not None:
        draft.set("model.experts_implementation", "grouped_mm" if grouped else "eager")
    if settings["distributed_timeout_minutes"]:
        draft.set("learner.timeout_s", 60 * settings["distributed_timeout_minutes"])


def _recomputation(settings: Settings, draft: Draft) -> None:
    granularity, method, layers = (settings[f"recompute_{name}"] for name in ("granularity", "method", "num_layers"))
    if granularity is None:
        for name in ("recompute_method", "recompute_num_layers"):
            if settings.gives(name):
                draft.note("no equivalent", settings.written[name], "has no effect without --recompute_granularity full")
        return
    if granularity not in ("full", "selective", "none"):
        raise UserError(f"{settings.written['recompute_granularity']}: is full, selective or none")
    draft.set("learner.gradient_checkpointing", granularity)
    if granularity == "full" and (method, layers) != ("uniform", 1) and (method or layers):
        draft.note("changed", "recompute_method, recompute_num_layers", "every layer is recomputed by itself (uniform, 1)")


def _schedule(settings: Settings, draft: Draft) -> None:
    style = settings["lr_decay_style"]
    if style not in ("cosine", "linear", "constant"):
        raise UserError(f"{settings.written['lr_decay_style']}: the schedules are cosine, linear, constant")
    if settings["lr"] is None:
        draft.set("learner.optimizer.learning_rate", 1e-5 if settings["tuner_type"] == "full" else 1e-4)
    if (settings["adam_beta1"], settings["adam_beta2"]) != (0.9, 0.95):
        draft.set("learner.optimizer.betas", [settings["adam_beta1"], settings["adam_beta2"]])
    draft.set("learner.schedule.type", style)
    draft.set("learner.schedule.warmup_fraction", settings["lr_warmup_fraction"])
    draft.set("learner.schedule.min_learning_rate", settings["min_lr"])


def _evaluation(settings: Settings, draft: Draft) -> None:
    convert_best(settings, draft)
    if not holds_out(draft):
        return
    draft.set("evaluate.every", settings["eval_steps"] or settings["save_steps"])
    iterations = settings["eval_iters"]
    if iterations is not None and iterations > 0:
        draft.set("evaluate.max_rows", iterations * settings["global_batch_size"])
        draft.note("changed", settings.written["eval_iters"], "batches of global_batch_size there, rows here (evaluate.max_rows)")
