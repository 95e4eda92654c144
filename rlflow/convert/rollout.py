"""Sampling settings and engines of the kinds that sample."""

from rlflow.convert.devices import Devices
from rlflow.convert.draft import Draft
from rlflow.convert.flags import Settings
from rlflow.errors import UserError

_ENGINE_FLAGS = {
    "vllm_enable_prefix_caching": "enable_prefix_caching",
    "vllm_disable_custom_all_reduce": "disable_custom_all_reduce",
    "vllm_enable_expert_parallel": "enable_expert_parallel",
}


def convert_rollout(settings: Settings, draft: Draft, devices: Devices, generations: int) -> None:
    """`rollout`, `residency` and the micro-batches of a job that samples."""
    longest = settings["response_length"] or settings["max_completion_length"]
    draft.set("rollout.num_generations", generations, given=settings.gives("num_generations"))
    draft.set("rollout.max_completion_tokens", longest, given=settings.gives("max_completion_length"))
    draft.set("rollout.temperature", settings["temperature"], given=settings.gives("temperature"))
    draft.set("rollout.top_p", settings["top_p"], given=settings.gives("top_p"))
    draft.set("rollout.top_k", max(0, settings["top_k"]), given=settings.gives("top_k"))
    if settings["stop_words"]:
        draft.set("rollout.stop", settings["stop_words"])
    for name in ("top_p", "top_k"):
        if not settings.gives(name) and settings[name] not in (1.0, -1):
            draft.note("warning", name, f"is {settings[name]:g} by default in ms-swift {settings.version}; written out")
    _engines(settings, draft, devices)
    _memory(settings, draft)
    if settings["max_length"]:
        draft.set("learner.micro_batch_tokens", settings["per_device_train_batch_size"] * (settings["max_length"] + longest))
        _engine_length(settings, draft, settings["max_length"] + longest)
    if settings["log_completions"] is not None:
        draft.set("run.log_completions_every", 1 if settings["log_completions"] else 0)


def _engines(settings: Settings, draft: Draft, devices: Devices) -> None:
    size = settings["vllm_tensor_parallel_size"]
    if devices.gpus % size:
        raise UserError(f"{settings.written['vllm_tensor_parallel_size']}: {devices.gpus} GPUs cannot be divided by {size}")
    draft.set("rollout.tensor_parallel_size", size, given=settings.gives("vllm_tensor_parallel_size"))
    draft.set("rollout.num_workers", devices.gpus // size, given=False)
    draft.set("rollout.gpu_memory_utilization", settings["vllm_gpu_memory_utilization"])
    draft.set("rollout.max_num_seqs", settings["vllm_max_num_seqs"])
    draft.set("rollout.enforce_eager", settings["vllm_enforce_eager"])
    engine = {argument: settings[flag] for flag, argument in _ENGINE_FLAGS.items() if settings[flag] is not None}
    draft.set("rollout.engine", engine or None)


def _memory(settings: Settings, draft: Draft) -> None:
    """Sleeping and offloading are one setting: who holds the GPU."""
    names = [name for name in ("sleep_level", "offload_model", "offload_optimizer") if settings.gives(name)]
    if not names:
        return
    asked = [bool(settings[name]) for name in names]
    draft.set("residency", "turns" if any(asked) else "together")
    what = " ".join(settings.written[name] for name in names)
    draft.note(
        "changed", what, f"residency: {draft.document['residency']} says all of it: who sleeps, and what is offloaded when"
    )


def _engine_length(settings: Settings, draft: Draft, length: int) -> None:
    given = settings["vllm_max_model_len"]
    if given == length:
        draft.note("same", settings.written["vllm_max_model_len"], "data.max_prompt_tokens + rollout.max_completion_tokens")
    elif given is not None:
        draft.note(
            "no equivalent",
            settings.written["vllm_max_model_len"],
            f"engines take {length} tokens: longest prompt and completion",
        )
