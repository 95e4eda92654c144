"""Data sets and the rows that are read of them."""

from typing import Any

from rlflow.convert.draft import Draft
from rlflow.convert.flags import Settings
from rlflow.errors import UserError
from rlflow.spec.data import parse_source

_HUGGING_FACE_NAMES = {
    "AI-ModelScope/alpaca-gpt4-data-en": "vicgalle/alpaca-gpt4",
    "AI-ModelScope/alpaca-gpt4-data-zh": "llm-wizard/alpaca-gpt4-data-zh",
    "liucong/Chinese-DeepSeek-R1-Distill-data-110k-SFT": "Congliu/Chinese-DeepSeek-R1-Distill-data-110k-SFT",
    "swift/self-cognition": "modelscope/self-cognition",
}
"""Data sets that the two hubs have under different names (the list of ms-swift itself)."""
_LOSSES = ("default", "last_round", "all")


def convert_data(settings: Settings, draft: Draft, limit: str, rows: list[str] | None = None) -> None:
    """`data`, with the length limit in the field `limit`; of `rows` instead of the data sets to train on, if given."""
    names = rows or settings["dataset"]
    if not names:
        raise UserError("--dataset: missing")
    draft.set("data.sources", [_source(name, settings, draft) for name in names])
    _hub(settings, draft)
    _identity(settings, draft)
    if rows is None:
        _held_out(settings, draft)
    _limit(settings, draft, limit)
    shuffled = settings["dataset_shuffle"], settings["train_dataloader_shuffle"]
    draft.set("data.shuffle", all(shuffled), given=any(map(settings.gives, ("dataset_shuffle", "train_dataloader_shuffle"))))
    if settings["system"]:
        draft.set("data.system", unescape(settings["system"]))
    if settings["enable_thinking"] is not None:
        draft.set("data.chat_template_kwargs", {"enable_thinking": settings["enable_thinking"]})
    if settings.gives("strict"):
        kind = "same" if settings["strict"] else "no equivalent"
        draft.note(kind, settings.written["strict"], "a malformed row stops the job and is named; it is not skipped")


def convert_loss_scale(settings: Settings, draft: Draft) -> None:
    """`data.loss` and `data.ignore_empty_think`."""
    given = settings["loss_scale"]
    parts = (given or "default").split("+")
    base = parts.pop(0) if parts[0] in _LOSSES else "default"
    unknown = [name for name in parts if name != "ignore_empty_think"]
    if unknown:
        raise UserError(
            f"{settings.written['loss_scale']}: {unknown[0]} has no equivalent; known: {', '.join(_LOSSES)}, each with "
            "or without +ignore_empty_think"
        )
    draft.set("data.loss", base, given=given is not None)
    hybrid = settings.version == "4" and given is None and is_hybrid(settings["model"] or "")
    if parts or hybrid:
        draft.set("data.ignore_empty_think", True)
    if hybrid:
        draft.note("changed", "loss_scale", "ms-swift 4 adds ignore_empty_think for models that can think or not")


def is_hybrid(model: str) -> bool:
    """Whether a Qwen3 model thinks or not, as it is asked to (a guess from its name)."""
    name = model.rpartition("/")[2].lower()
    return name.startswith("qwen3-") and not any(
        word in name for word in ("base", "2507", "coder", "embedding", "reranker", "next")
    )


def unescape(text: str) -> str:
    r"""`\n` as two characters is a line break, as for ms-swift."""
    return text.replace("\\n", "\n")


def _source(written: str, settings: Settings, draft: Draft) -> Any:
    """A source as short as it can be written."""
    columns = {"columns": settings["columns"]} if settings["columns"] else {}
    if written.startswith("<") and written.endswith(">"):
        draft.note("warning", f"--dataset {written}", "is a placeholder: write your file or data set id into data.sources")
        return {"type": "file", "path": written, **columns}
    name = _hugging_face_name(written, draft)
    try:
        parsed = parse_source(name)
    except ValueError as error:
        raise UserError(f"--dataset {written}: {error}") from None
    return {key: value for key, value in parsed.items() if value is not None} | columns if columns else name


def _hugging_face_name(written: str, draft: Draft) -> str:
    name = written.removeprefix("MS::")
    head, colon, rest = name.removeprefix("HF::").partition(":")
    hub_id, mark, rows = head.partition("#")
    if colon and hub_id == "swift/self-cognition":
        subset, mark, rows = rest.partition("#")
        draft.note(
            "warning", f"--dataset {written}", f"what ms-swift's subset {subset} does to the rows is not done; see the rows"
        )
        return f"{_HUGGING_FACE_NAMES[hub_id]}{mark}{rows}"
    if hub_id in _HUGGING_FACE_NAMES:
        known = _HUGGING_FACE_NAMES[hub_id]
        draft.note("changed", f"--dataset {written}", f"is {known} on the Hugging Face hub")
        return f"{known}{colon}{rest}{mark}{rows}"
    return name


def _hub(settings: Settings, draft: Draft) -> None:
    if not settings["use_hf"]:
        draft.note(
            "changed", "hub", "models and data sets come from Hugging Face; ms-swift takes ModelScope without --use_hf true"
        )
    elif settings.gives("use_hf"):
        draft.note("same", settings.written["use_hf"], "Hugging Face is the hub")


def _identity(settings: Settings, draft: Draft) -> None:
    for name in ("model_name", "model_author"):
        if settings[name]:
            draft.note(
                "no equivalent",
                settings.written[name],
                "placeholders in rows are not filled; write the names into the rows of the data set",
            )


def _held_out(settings: Settings, draft: Draft) -> None:
    if settings["val_dataset"]:
        draft.note(
            "no equivalent",
            settings.written["val_dataset"],
            "held-out rows are taken from data.sources: set data.held_out to a number of rows or a fraction",
        )
        return
    draft.set("data.held_out", settings["split_dataset_ratio"], given=False)
    if settings["split_dataset_ratio"] and len(settings["dataset"]) > 1:
        draft.note("changed", "split_dataset_ratio", "the fraction is taken of the mixed rows, not of each data set")


def _limit(settings: Settings, draft: Draft, field: str) -> None:
    length = settings["max_length"]
    if draft.kind == "infer" and settings["vllm_max_model_len"] and settings["max_new_tokens"]:
        length = settings["vllm_max_model_len"] - settings["max_new_tokens"]
    draft.set(field, length)
    if length is None:
        draft.note("changed", "max_length", f"ms-swift takes the model's own limit; here {field} is its default; set it")
    cuts = draft.kind in ("grpo", "gkd", "ppo")
    if draft.kind == "infer":
        return
    strategy = settings["truncation_strategy"] or ("left" if cuts else "delete")
    draft.set("data.overlong", "drop")
    if strategy != "delete":
        what = settings.written.get("truncation_strategy", "truncation_strategy left (its default here)")
        draft.note("changed", what, f"rows longer than {field} are dropped and counted, not cut")
