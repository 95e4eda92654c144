"""`swift export`: an `rlflow export` command. The names of its options are all in this module."""

from rlflow.convert.draft import Draft
from rlflow.convert.flags import Flag, Settings, boolean, missing, part, same, text, words
from rlflow.convert.shared_flags import MODEL
from rlflow.convert.sources import note_hub
from rlflow.errors import UserError

_QUANTISED = "models are exported as they are; quantise the exported directory with the tool that serves it"
_WEIGHTS = "checkpoints are Hugging Face directories already"

EXPORT: dict[str, Flag] = {
    **MODEL,
    "merge_lora": part(boolean, False),
    "output_dir": part(text),
    "push_to_hub": part(boolean, False),
    "hub_model_id": part(text),
    "hub_private_repo": part(boolean, False),
    "commit_message": missing("the hub gets a message that names the run"),
    "exist_ok": missing("an export does not write into a directory that is not empty", boolean, (False,)),
    "safe_serialization": same("models are written as safetensors", boolean, (True,), "models are written as safetensors"),
    "max_shard_size": part(text),
    "to_peft_format": same("adapters have peft's format", boolean),
    "to_mcore": missing(_WEIGHTS, boolean, (False,)),
    "to_hf": missing(_WEIGHTS, boolean, (False,)),
    "mcore_model": missing(_WEIGHTS),
    "test_convert_precision": missing(_WEIGHTS, boolean, (False,)),
    "to_ollama": missing(_QUANTISED, boolean, (False,)),
    "to_cached_dataset": missing("rows are tokenised once by each job", boolean, (False,)),
}
_REFUSED = {name: part(text) for name in ("quant_method", "quant_bits", "quant_n_samples", "quant_batch_size", "group_size")}
EXPORT |= {**_REFUSED, "dataset": part(words)}


def export_command(settings: Settings, draft: Draft) -> list[str]:
    """The words of `rlflow export`. The hub's token is never among them."""
    if settings["quant_method"] or settings["quant_bits"]:
        raise UserError(f"--quant_method, --quant_bits: have no equivalent; {_QUANTISED}")
    adapters = settings["adapters"] or []
    if len(adapters) > 1:
        raise UserError(f"{settings.written['adapters']}: one adapter at a time")
    origin = settings["model"] or (adapters[0] if adapters else None)
    if origin is None:
        raise UserError("--adapters, --model: one of them is needed")
    command = ["rlflow", "export", origin]
    if adapters and settings["model"]:
        command += ["--adapter", adapters[0]]
    merges = settings["merge_lora"]
    if adapters:
        command += ["--merge" if merges else "--no-merge"]
    suffix = "merged" if merges else "export"
    command += ["--output", settings["output_dir"] or f"{(adapters or [origin])[0].rstrip('/')}-{suffix}"]
    if adapters:
        draft.note("changed", settings.written["adapters"], "an rlflow run is named instead: `rlflow export RUN` finds its model")
    note_hub(settings, draft, "--source-hub")
    return command + _push(settings, draft)


def _push(settings: Settings, draft: Draft) -> list[str]:
    if settings["max_shard_size"]:
        size = ["--max-shard-size", settings["max_shard_size"]]
    else:
        size = []
    if not settings["push_to_hub"]:
        return size
    if settings["hub_model_id"] is None:
        raise UserError("--hub_model_id: missing; push_to_hub needs it")
    if settings["hub_token"]:
        draft.note("changed", "--hub_token", "is not written into a command: set HF_TOKEN (MODELSCOPE_API_TOKEN) where it runs")
    hub = "huggingface" if settings["use_hf"] else "modelscope"
    if hub == "modelscope":
        draft.note(
            "changed", settings.written.get("use_hf", "use_hf"), "pushed to ModelScope, which needs the package modelscope"
        )
    private = ["--private"] if settings["hub_private_repo"] else []
    return [*size, "--push", settings["hub_model_id"], "--hub", hub, *private]
