"""What all training commands of `swift` have in common: model, batch, optimiser, checkpoints, evaluation."""

import math
import re
from typing import Any

from rlflow.convert.devices import Devices
from rlflow.convert.draft import Draft
from rlflow.convert.flags import Settings
from rlflow.convert.models import is_mixture
from rlflow.convert.sources import hold_nothing_out, holds_out
from rlflow.errors import UserError

_DTYPES = {"bfloat16": "bfloat16", "bf16": "bfloat16", "float32": "float32", "fp32": "float32"}
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_SCHEDULES = {
    "cosine": "cosine",
    "cosine_with_min_lr": "cosine",
    "linear": "linear",
    "constant": "constant",
    "constant_with_warmup": "constant",
}


def convert_model(settings: Settings, draft: Draft) -> None:
    """`model`."""
    draft.set("model.path", settings["model"])
    dtype = settings["torch_dtype"] or ("float16" if settings["fp16"] else "bfloat16")
    if dtype not in _DTYPES:
        raise UserError(f"{settings.written.get('torch_dtype', '--fp16')}: {dtype} cannot be trained in; use bfloat16 or float32")
    draft.set("model.dtype", _DTYPES[dtype], given=settings.gives("torch_dtype"))
    if settings["bf16"] is not None:
        draft.note("same", settings.written["bf16"], f"model.dtype is {_DTYPES[dtype]}")
    implementation = settings["experts_impl"]
    draft.set("model.experts_implementation", implementation)
    if settings["adapters"] and draft.kind != "infer":
        draft.note(
            "no equivalent", settings.written["adapters"], "merge them first with `rlflow export`, and name the result as model"
        )
    if settings["hub_token"]:
        draft.note("changed", settings.written["hub_token"], "is no part of a spec: set HF_TOKEN where the job runs")
    _convert_adapters(settings, draft)


def _convert_adapters(settings: Settings, draft: Draft) -> None:
    if settings["tuner_type"] in (None, "full"):
        return
    if settings["tuner_type"] != "lora":
        raise UserError(f"{settings.written['tuner_type']}: rlflow trains full models or LoRA adapters (full, lora)")
    adapters = {
        "rank": settings["lora_rank"],
        "alpha": settings["lora_alpha"],
        "dropout": settings["lora_dropout"],
        "target_modules": _target_modules(settings, draft),
    }
    draft.set("model.lora", {**adapters, **_quantization(settings, draft)})


def _target_modules(settings: Settings, draft: Draft) -> str | list[str]:
    """Of a mixture of experts attention alone, where its experts, which are one parameter, cannot have adapters."""
    targets = settings["target_modules"]
    if targets != ["all-linear"]:
        return targets
    obstacles = {
        "dropout": settings["lora_dropout"] > 0,
        "ZeRO 3": settings["deepspeed"] in ("zero3", "zero3_offload"),
    }
    found = " and ".join(name for name, applies in obstacles.items() if applies)
    if not found or not is_mixture(settings["model"]):
        return "all-linear"
    draft.note(
        "changed",
        settings.written.get("target_modules", "target_modules"),
        f"attention alone is adapted: a mixture's experts are one parameter, which has no adapters with {found}",
    )
    return list(_ATTENTION)


def _quantization(settings: Settings, draft: Draft) -> dict[str, str]:
    """QLoRA's setting; other methods and bits only give a note."""
    asked = (settings["quant_method"], settings["quant_bits"]) == ("bnb", 4)
    if asked and not is_mixture(settings["model"]):
        return {"quantization": "nf4"}
    why = (
        "a mixture's experts cannot be quantised: its weights stay in model.dtype, and need four times the memory"
        if asked
        else "a base is quantised by bitsandbytes to 4 bits (bnb, 4) or not"
    )
    for name in filter(settings.gives, ("quant_method", "quant_bits")):
        draft.note("no equivalent", settings.written[name], why)
    return {}


def convert_optimizer(settings: Settings, draft: Draft) -> None:
    """`learner.optimizer` and `learner.schedule`."""
    rate = settings["learning_rate"] or (1e-5 if settings["tuner_type"] == "full" else 1e-4)
    draft.set("learner.optimizer.learning_rate", rate, given=settings.gives("learning_rate"))
    draft.set("learner.optimizer.betas", [settings["adam_beta1"], settings["adam_beta2"]], given=settings.gives("adam_beta2"))
    if draft.document["learner"].get("optimizer", {}).get("betas") == [0.9, 0.95]:
        del draft.document["learner"]["optimizer"]["betas"]
    name = settings["lr_scheduler_type"]
    if name not in _SCHEDULES:
        raise UserError(f"{settings.written['lr_scheduler_type']}: the schedules are {', '.join(_SCHEDULES)}")
    draft.set("learner.schedule.type", _SCHEDULES[name])
    options = dict(settings["lr_scheduler_kwargs"] or {})
    draft.set("learner.schedule.min_learning_rate", options.pop("min_lr", None))
    if options:
        draft.note("no equivalent", settings.written["lr_scheduler_kwargs"], f"a schedule has no {', '.join(options)}")
    steps = settings["warmup_steps"]
    if steps:
        draft.set("learner.schedule.warmup_steps" if steps >= 1 else "learner.schedule.warmup_fraction", steps)
    else:
        draft.set("learner.schedule.warmup_fraction", settings["warmup_ratio"], given=False)


def convert_parallelism(settings: Settings, draft: Draft, devices: Devices) -> None:
    """`learner`: ranks, ZeRO stage, recomputation."""
    draft.set("learner.num_ranks", devices.gpus, given=False)
    draft.set("learner.sequence_parallel", settings["sequence_parallel_size"], given=settings.gives("sequence_parallel_size"))
    if settings["deepspeed"]:
        _convert_deepspeed(settings, draft)
    checkpointing = settings["gradient_checkpointing"]
    if checkpointing is not None:
        draft.set("learner.gradient_checkpointing", "full" if checkpointing else "none")
    if settings["padding_free"] is not None:
        draft.set("learner.packing", settings["padding_free"] or settings["packing"])


def _convert_deepspeed(settings: Settings, draft: Draft) -> None:
    match = re.fullmatch(r"zero([0-3])(_offload)?", settings["deepspeed"])
    if match is None:
        draft.note(
            "no equivalent",
            settings.written["deepspeed"],
            "DeepSpeed's own file is not read; learner.zero_stage and learner.offload_optimizer say it, auto by what fits",
        )
        return
    draft.set("learner.zero_stage", int(match[1]))
    if match[2]:
        draft.set("learner.offload_optimizer", True)
        if match[1] == "3":
            draft.note("changed", settings.written["deepspeed"], "the optimiser is kept in host memory, parameters are not")


def rows_per_step(settings: Settings, devices: Devices) -> int:
    """What ms-swift trains on in an optimiser step: rows of a pass x accumulation steps."""
    return rows_per_pass(settings, devices) * accumulation(settings, devices)


def rows_per_pass(settings: Settings, devices: Devices) -> int:
    """Rows a process x processes, of which some may share their rows."""
    micro, sharing = settings["per_device_train_batch_size"] * devices.ranks, settings["sequence_parallel_size"]
    if devices.ranks % sharing:
        raise UserError(f"{settings.written['sequence_parallel_size']}: {devices.ranks} processes cannot be divided by {sharing}")
    return micro // sharing


def accumulation(settings: Settings, devices: Devices) -> int:
    """Gradient accumulation steps; if not given, as many as make 16 rows (GRPO: one)."""
    given = settings["gradient_accumulation_steps"]
    if given is not None:
        return given
    if settings["rlhf_type"] == "grpo":
        return 1
    return max(1, math.ceil(16 / (settings["per_device_train_batch_size"] * devices.ranks)))


def convert_batch(settings: Settings, draft: Draft, devices: Devices) -> None:
    """`batch_size` and micro-batches of a job on rows."""
    size = rows_per_step(settings, devices)
    draft.set("batch_size", size)
    length = settings["packing_length"] or settings["max_length"]
    if length:
        draft.set("learner.micro_batch_tokens", settings["per_device_train_batch_size"] * length)
    if settings["packing"]:
        draft.note("warning", settings.written["packing"], packing_note(size, length))


def packing_note(size: int, length: int | None) -> str:
    """What batch sizes count with packing."""
    row = "max_length" if length is None else str(length)
    return (
        f"the {size} rows of a step are packed ones there, of up to {row} tokens; batch_size counts conversations, a step here "
        f"has fewer tokens: multiply batch_size by the conversations that fit into {row} tokens (micro-batches are always packed)"
    )


def convert_length(settings: Settings, draft: Draft) -> None:
    """`steps` or `epochs`."""
    if settings["max_steps"] > 0:
        draft.set("steps", settings["max_steps"])
        if settings.gives("num_train_epochs"):
            draft.note("same", settings.written["num_train_epochs"], "max_steps decides")
    else:
        draft.set("epochs", settings["num_train_epochs"])


def convert_run(settings: Settings, draft: Draft) -> None:
    """`run`: name, directory, checkpoints."""
    if settings["model"] is None:
        raise UserError("--model: missing")
    name = settings["run_name"] or f"{settings['model'].rstrip('/').rpartition('/')[2]}-{draft.kind}".lower()
    draft.set("run.name", re.sub(r"[^A-Za-z0-9_.-]", "-", name))
    draft.set("run.dir", settings["output_dir"])
    if settings["save_strategy"] != "steps":
        draft.note("changed", settings.written["save_strategy"], "checkpoints come every run.save_every steps, and at the end")
    elif settings["save_steps"] >= 1:
        draft.set("run.save_every", int(settings["save_steps"]), given=settings.gives("save_steps"))
    else:
        draft.note("no equivalent", settings.written["save_steps"], "fractions of a run; set run.save_every to a number of steps")
    draft.set("run.keep_checkpoints", settings["save_total_limit"])
    if settings["save_total_limit"] is None:
        draft.note("changed", "save_total_limit", "ms-swift keeps all checkpoints, rlflow the newest 2; set run.keep_checkpoints")


def convert_best(settings: Settings, draft: Draft) -> None:
    """`run.keep_best` and `run.early_stopping`, which need evaluations."""
    given = [name for name in ("metric_for_best_model", "greater_is_better", "early_stop_interval") if settings.gives(name)]
    patience, asked = settings["early_stop_interval"], settings["metric_for_best_model"]
    if not holds_out(draft):
        for name in given:
            draft.note("warning", settings.written[name], "nothing is evaluated without held-out rows; set data.held_out")
        return
    metric = "eval_" + (asked or ("reward" if draft.kind in ("grpo", "ppo", "gkd") else "loss")).removeprefix("eval_")
    metric = "eval_token_accuracy" if metric in ("eval_token_acc", "eval_acc") else metric
    greater = settings["greater_is_better"]
    greater = "loss" not in metric if greater is None else greater
    best = {"metric": metric, "mode": "max" if greater else "min"}
    if asked:
        draft.set("run.keep_best", best)
    if patience:
        draft.set("run.early_stopping", {**best, "patience": patience})
    if not asked and not patience and settings.gives("greater_is_better"):
        draft.note("same", settings.written["greater_is_better"], "has no effect without metric_for_best_model, there or here")


def convert_evaluation(settings: Settings, draft: Draft) -> None:
    """`evaluate.every`."""
    steps = settings["eval_steps"]
    strategy = settings["eval_strategy"]
    if strategy not in (None, "no", "steps", "epoch"):
        raise UserError(f"{settings.written['eval_strategy']}: is one of no, steps, epoch")
    if strategy == "no":
        draft.note("same", settings.written["eval_strategy"], "nothing is held out")
        hold_nothing_out(draft)
    elif strategy == "epoch":
        draft.note("changed", settings.written["eval_strategy"], "evaluations come every evaluate.every steps")
    convert_best(settings, draft)
    if not holds_out(draft):
        for name in ("eval_steps", "eval_strategy"):
            if settings.gives(name) and strategy != "no":
                draft.note(
                    "warning",
                    settings.written[name],
                    "nothing is evaluated, there or here: without split_dataset_ratio no rows are held out; set data.held_out",
                )
        return
    every = steps if steps is not None else settings["save_steps"]
    if every >= 1:
        draft.set("evaluate.every", int(every))
    else:
        draft.note("no equivalent", "eval_steps", "fractions of a run; set evaluate.every to a number of steps")


def note_unused(settings: Settings, draft: Draft, why: str) -> None:
    """Flags that nothing asked for."""
    for name in settings.unused():
        flag: Any = settings.table[name]
        if not (flag.same or flag.missing):
            draft.note("no equivalent", settings.written[name], why)
