"""`swift infer`: a chat, or a job of kind infer. The names of that command and that kind are all in this module."""

import json
from collections.abc import Iterator
from pathlib import Path

from rlflow.convert.devices import Devices
from rlflow.convert.draft import Draft, default_of
from rlflow.convert.flags import Flag, Settings, boolean, integer, missing, number, part, same, text, words
from rlflow.convert.shared_flags import DATA, MODEL
from rlflow.convert.sources import convert_data, note_hub, unescape
from rlflow.convert.thinking import OFF_IN_4, lets_think
from rlflow.convert.training import convert_model
from rlflow.errors import UserError

_ENGINE = "vLLM is the engine"
_LOGPROBS = "answers are written without log-probabilities; a server of the exported model (`vllm serve`) gives them"
_CHAT_OPTIONS = {
    "system": "--system",
    "temperature": "--temperature",
    "top_p": "--top-p",
    "top_k": "--top-k",
    "repetition_penalty": "--repetition-penalty",
    "max_new_tokens": "--max-tokens",
    "vllm_max_model_len": "--max-model-tokens",
}
"""Options of `rlflow chat`, by flag. What is not given is as the model's generation_config.json says, there and here."""
_CHAT_SETTINGS = {
    "torch_dtype": "--dtype",
    "vllm_tensor_parallel_size": "--tensor-parallel-size",
    "vllm_gpu_memory_utilization": "--gpu-memory-utilization",
    "seed": "--seed",
}
"""Options that have the same defaults there and here."""
_CHAT_LIMITS = {
    "max_new_tokens": "--max-tokens 2048 for an answer",
    "vllm_max_model_len": "--max-model-tokens 8192 for a conversation",
}
"""Defaults of `rlflow chat` that ms-swift does not have, by flag."""

INFER: dict[str, Flag] = {
    **MODEL,
    **DATA,
    "infer_backend": same(_ENGINE, text, ("vllm",), _ENGINE),
    "stream": part(boolean),
    "max_new_tokens": part(integer),
    "temperature": part(number),
    "top_p": part(number),
    "top_k": part(integer),
    "repetition_penalty": part(number),
    "logprobs": missing(_LOGPROBS, boolean, (False,)),
    "top_logprobs": missing(_LOGPROBS),
    "structured_outputs_regex": missing(
        "answers are free: a reward of type format with this pattern and infer.min_reward: 1 leave out those that do not match"
    ),
    "num_beams": missing("answers are sampled, or greedy", integer, (1,)),
    "stop_words": part(words, []),
    "response_prefix": part(text),
    "merge_lora": same("adapters are merged for the engine", boolean, (True, False)),
    "vllm_gpu_memory_utilization": part(number, 0.9),
    "vllm_tensor_parallel_size": part(integer, 1),
    "vllm_max_model_len": part(integer),
    "vllm_max_num_seqs": part(integer, 256),
    "vllm_enforce_eager": part(boolean),
    "write_batch_size": same("answers are written as they come", integer),
    "max_batch_size": same("the engine fills its batch itself", integer),
    "result_path": part(text),
    "load_data_args": missing("name the data in data.sources", boolean, (False,)),
    "ddp_timeout": missing("engines wait for each other as long as rollout.generate_timeout_s says"),
    "metric": missing("add `rewards` to the spec to score answers"),
    "val_dataset_sample": missing("write #N after the data set"),
}

OLD_NAMES = {
    "tensor_parallel_size": "vllm_tensor_parallel_size",
    "gpu_memory_utilization": "vllm_gpu_memory_utilization",
    "max_model_len": "vllm_max_model_len",
    "max_num_seqs": "vllm_max_num_seqs",
    "enforce_eager": "vllm_enforce_eager",
    "ckpt_dir": "adapters",
}


def is_chat(settings: Settings) -> bool:
    """Without rows to answer it is a conversation."""
    return not settings["val_dataset"] and not (settings["dataset"] and settings["split_dataset_ratio"])


def chat_command(settings: Settings, draft: Draft) -> list[str]:
    """The words of `rlflow chat`."""
    model = _model_words(settings, draft)
    command = ["rlflow", "chat", *model]
    note_hub(settings, draft)
    prefix = settings["response_prefix"]
    thinks = lets_think(settings, draft, model[0], "--no-thinking")
    if thinks is False:
        command.append("--no-thinking")
    elif thinks:
        draft.note("same", settings.written["enable_thinking"], "the model thinks unless it is told not to")
    for name in ("dataset", "split_dataset_ratio"):
        if settings.gives(name):
            draft.note("same", settings.written[name], "no rows are held out of a data set to be answered: it is a conversation")
    if prefix is not None:
        command += ["--response-prefix", prefix]
    for flag, option in {**_CHAT_OPTIONS, **_CHAT_SETTINGS}.items():
        if settings[flag] is not None and (settings.gives(flag) or flag not in _CHAT_SETTINGS):
            command += [option, str(settings[flag])]
    if settings["result_path"] is not None:
        draft.note("no equivalent", settings.written["result_path"], "`save` in the chat writes its conversations")
    if settings["stream"] is False and settings.gives("stream"):
        draft.note("no equivalent", settings.written["stream"], "answers are shown as they are written")
    elif settings.gives("stream"):
        draft.note("same", settings.written["stream"], "answers are shown as they are written")
    _note_limits(draft, {name: text for name, text in _CHAT_LIMITS.items() if settings[name] is None})
    return command


def _note_limits(draft: Draft, limits: dict[str, str]) -> None:
    """Lengths that the command does not give, and what they are here."""
    if limits:
        here = ", ".join(limits.values())
        draft.note("changed", ", ".join(limits), f"ms-swift goes as far as the model can; here the default is {here}")


def _model_words(settings: Settings, draft: Draft) -> list[str]:
    adapters = settings["adapters"] or []
    model = settings["model"]
    if len(adapters) > 1:
        raise UserError(f"{settings.written['adapters']}: one adapter at a time")
    if not adapters:
        if model is None:
            raise UserError("--model: missing")
        return [model]
    base = model or _base_model(adapters[0])
    if base is None:
        draft.note(
            "warning",
            settings.written["adapters"],
            "ms-swift finds the base model in the checkpoint, which is not here: write it in the place of <model>; an rlflow run "
            "is whole: `rlflow chat RUN`",
        )
        if settings.version == "4" and settings["enable_thinking"] is None:
            draft.note("changed", "enable_thinking", f"{OFF_IN_4}; if <model> is one, add --no-thinking")
    return [base or "<model>", "--adapter", adapters[0]]


def _base_model(adapter: str) -> str | None:
    """What a checkpoint of adapters that is here says it belongs to: ms-swift's own file, or peft's."""
    for name, field in (("args.json", "model"), ("adapter_config.json", "base_model_name_or_path")):
        file = Path(adapter) / name
        if file.is_file() and (model := json.loads(file.read_text(encoding="utf-8")).get(field)):
            return model
    return None


def convert_batch_inference(settings: Settings, draft: Draft, devices: Devices) -> None:
    """A document of kind infer."""
    adapters = settings["adapters"] or []
    if settings["model"] is None:
        raise UserError("--model: missing; a job needs the model that an adapter belongs to")
    if len(adapters) > 1:
        raise UserError(f"{settings.written['adapters']}: one adapter at a time")
    draft.set("run.name", f"{settings['model'].rstrip('/').rpartition('/')[2]}-infer".lower())
    convert_model(settings, draft)
    draft.set("adapter", adapters[0] if adapters else None)
    _rows(settings, draft)
    _sampling(settings, draft)
    _note_limits(draft, dict(_unset_limits(draft)))
    size = settings["vllm_tensor_parallel_size"]
    if devices.gpus % size:
        raise UserError(f"{settings.written['vllm_tensor_parallel_size']}: {devices.gpus} GPUs cannot be divided by {size}")
    draft.set("rollout.num_workers", devices.gpus // size)
    draft.set("rollout.tensor_parallel_size", size)
    draft.set("rollout.gpu_memory_utilization", settings["vllm_gpu_memory_utilization"])
    draft.set("rollout.max_num_seqs", settings["vllm_max_num_seqs"] if settings.gives("vllm_max_num_seqs") else None)
    draft.set("rollout.enforce_eager", settings["vllm_enforce_eager"])
    draft.set("infer.output", settings["result_path"])
    if settings["response_prefix"] is not None:
        draft.set("infer.response_prefix", unescape(settings["response_prefix"]))
    if settings["stream"] is not None:
        draft.note("same", settings.written["stream"], "answers are written as they come")


def _unset_limits(draft: Draft) -> Iterator[tuple[str, str]]:
    for flag, section, field in (
        ("max_new_tokens", "rollout", "max_completion_tokens"),
        ("max_length", "data", "max_prompt_tokens"),
    ):
        if field not in draft.document.get(section, {}):
            yield flag, f"{section}.{field}: {default_of('infer', f'{section}.{field}')}"


def _rows(settings: Settings, draft: Draft) -> None:
    for name in ("dataset", "split_dataset_ratio"):
        if settings["val_dataset"] and settings.gives(name):
            draft.note("same", settings.written[name], "val_dataset is what is answered")
    if not settings["val_dataset"]:
        what = f"{settings.written['dataset']} {settings.written['split_dataset_ratio']}"
        draft.note("changed", what, "all rows are answered, not a part of them")
    convert_data(settings, draft, "data.max_prompt_tokens", rows=settings["val_dataset"] or settings["dataset"])


def _sampling(settings: Settings, draft: Draft) -> None:
    draft.set("rollout.max_completion_tokens", settings["max_new_tokens"])
    for name in ("temperature", "top_p", "repetition_penalty"):
        draft.set(f"rollout.{name}", settings[name])
    draft.set("rollout.top_k", None if settings["top_k"] is None else max(0, settings["top_k"]))
    if settings["vllm_max_model_len"] and not settings["max_new_tokens"]:
        what = settings.written["vllm_max_model_len"]
        draft.note("no equivalent", what, "set data.max_prompt_tokens and rollout.max_completion_tokens, which make it up")
    if settings["stop_words"]:
        draft.set("rollout.stop", settings["stop_words"])
