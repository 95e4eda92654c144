"""Data sets and the rows that are read of them."""

from typing import Any, get_args

from rlflow.convert.draft import Draft
from rlflow.convert.flags import Settings
from rlflow.convert.thinking import adds_ignore_empty_think, convert_thinking
from rlflow.errors import UserError
from rlflow.spec.data import PackagedLossWeights, parse_source

_HUGGING_FACE_NAMES = {
    "AI-MO/NuminaMath-TIR": "AI-MO/NuminaMath-TIR",
    "AI-ModelScope/alpaca-gpt4-data-en": "vicgalle/alpaca-gpt4",
    "AI-ModelScope/alpaca-gpt4-data-zh": "llm-wizard/alpaca-gpt4-data-zh",
    "liucong/Chinese-DeepSeek-R1-Distill-data-110k-SFT": "Congliu/Chinese-DeepSeek-R1-Distill-data-110k-SFT",
}
"""Data sets that both hubs have, by their ModelScope names (the list of ms-swift itself)."""
_IDENTITY = "swift/self-cognition"
"""Its rows have placeholders; a source of this id fills them."""
_LOSSES = ("default", "last_round", "all")
_LOSS_WEIGHTS = get_args(PackagedLossWeights)
_OVERLONG = {"delete": "drop", "left": "truncate_left", "right": "truncate_right", "split": "split"}


def convert_data(settings: Settings, draft: Draft, limit: str, rows: list[str] | None = None) -> None:
    """`data`, with the length limit in the field `limit`; of `rows` instead of the data sets to train on, if given."""
    names = rows or settings["dataset"]
    if not names:
        tokens = "; a cached data set holds tokens: name the rows that it was made of" if settings.gives("cached_dataset") else ""
        raise UserError(f"--dataset: missing{tokens}")
    draft.set("data.sources", [_source(name, settings, draft) for name in names])
    note_hub(settings, draft)
    _identity(names, settings, draft)
    if rows is None:
        _held_out(settings, draft)
    _mix(settings, draft)
    _streaming(settings, draft)
    _limit(settings, draft, limit)
    shuffled = settings["dataset_shuffle"], settings["train_dataloader_shuffle"]
    draft.set("data.shuffle", all(shuffled), given=any(map(settings.gives, ("dataset_shuffle", "train_dataloader_shuffle"))))
    if settings["system"]:
        draft.set("data.system", unescape(settings["system"]))
    convert_thinking(settings, draft)
    if settings.gives("strict"):
        kind = "same" if settings["strict"] else "no equivalent"
        draft.note(kind, settings.written["strict"], "a malformed row stops the job and is named; it is not skipped")


def convert_loss_scale(settings: Settings, draft: Draft) -> None:
    """`data.loss`, `data.loss_weights` and `data.ignore_empty_think`; other kinds than sft train whole answers."""
    given = settings["loss_scale"]
    disabled = settings["disable_ignore_empty_think"]
    if draft.kind != "sft":
        whole = {"loss_scale": given == "last_round", "disable_ignore_empty_think": disabled}
        for name in filter(settings.gives, whole):
            kind = "same" if whole[name] else "no equivalent"
            draft.note(kind, settings.written[name], f"a job of kind {draft.kind} trains answers as a whole")
        return
    parts = (given or "default").split("+")
    base = parts.pop(0) if parts[0] in _LOSSES else "default"
    unknown = [name for name in parts if name not in (*_LOSS_WEIGHTS, "ignore_empty_think")]
    if unknown:
        raise UserError(
            f"{settings.written['loss_scale']}: {unknown[0]} has no equivalent; known: {', '.join(_LOSSES)}, each with "
            f"or without +ignore_empty_think, {', '.join(f'+{name}' for name in _LOSS_WEIGHTS)}; convert without it, and write "
            "its patterns and weights as data.loss_weights"
        )
    draft.set("data.loss", base, given=given is not None)
    draft.set("data.loss_weights", [name for name in parts if name in _LOSS_WEIGHTS] or None)
    added = adds_ignore_empty_think(settings)
    if "ignore_empty_think" in parts or added:
        draft.set("data.ignore_empty_think", True)
    if added:
        draft.note("changed", "loss_scale", "ms-swift 4 adds ignore_empty_think for models that can think or not")
    if settings.gives("disable_ignore_empty_think"):
        draft.note("same", settings.written["disable_ignore_empty_think"], "data.ignore_empty_think says it, false if not set")


def unescape(text: str) -> str:
    r"""`\n` as two characters is a line break, as for ms-swift."""
    return text.replace("\\n", "\n")


def _source(written: str, settings: Settings, draft: Draft, held_out: float | str | None = None) -> Any:
    """A source as short as it can be written."""
    extra = {"columns": settings["columns"]} if settings["columns"] else {}
    extra |= {} if held_out is None else {"held_out": held_out}
    if written.startswith("<") and written.endswith(">"):
        draft.note("warning", f"--dataset {written}", "is a placeholder: write your file or data set id into data.sources")
        return {"type": "file", "path": written, **extra}
    name = _name_of(written, settings, draft)
    try:
        parsed = parse_source(name)
    except ValueError as error:
        raise UserError(f"--dataset {written}: {error}") from None
    return {key: value for key, value in parsed.items() if value is not None} | extra if extra else name


def _name_of(written: str, settings: Settings, draft: Draft) -> str:
    """The name in rlflow of a data set of ModelScope: a known one on the Hugging Face hub, else the same with `MS::`."""
    if written.startswith(("MS::", "HF::")) or _type_of(written) == "file":
        return written
    head, mark, rows = written.partition("#")
    hub_id, colon, subset = head.partition(":")
    if hub_id in _HUGGING_FACE_NAMES:
        known = _HUGGING_FACE_NAMES[hub_id]
        if known != hub_id:
            draft.note("changed", f"--dataset {written}", f"is {known} on the Hugging Face hub")
        return f"{known}{colon}{subset}{mark}{rows}"
    if hub_id == _IDENTITY or settings["use_hf"]:
        return written
    draft.note(
        "changed",
        f"--dataset {written}",
        "is read from ModelScope (pip install modelscope), as ms-swift does without --use_hf true; without MS:: in front it is "
        "read from the Hugging Face hub, if it is there",
    )
    return f"MS::{written}"


def _type_of(written: str) -> str:
    """Kind of the source that the text is short for; empty if it is none."""
    try:
        return parse_source(written)["type"]
    except ValueError:
        return ""


def note_hub(settings: Settings, draft: Draft, flag: str = "--hub") -> None:
    """Where the models of a job, or of a command with this `flag`, come from."""
    if not settings["use_hf"]:
        what = "models, and data sets known to be on both, come" if draft.kind else "the model comes"
        here = "model.hub: modelscope" if draft.kind else f"{flag} modelscope"
        draft.note(
            "changed",
            settings.written.get("use_hf", "hub"),
            f"{what} from Hugging Face; without --use_hf true ms-swift takes ModelScope (here: {here})",
        )
    elif settings.gives("use_hf"):
        draft.note("same", settings.written["use_hf"], "Hugging Face is the hub")


def _identity(names: list[str], settings: Settings, draft: Draft) -> None:
    """`data.model_name` and `data.model_author`, one for all languages or one for each."""
    fills = any(_type_of(name) == "self_cognition" for name in names)
    for name in ("model_name", "model_author"):
        given = settings[name]
        if fills and not given:
            raise UserError(f"--{name}: missing; {_IDENTITY} has a place for it")
        if given and len(given) > 2:
            raise UserError(f"{settings.written[name]}: takes one name, or one in Chinese and one in English")
        if fills:
            draft.set(f"data.{name}", given[0] if len(given) == 1 else dict(zip(("zh", "en"), given, strict=True)))
        elif given:
            draft.note("no equivalent", settings.written[name], f"has no effect without {_IDENTITY}, there or here")
    if fills:
        draft.note("same", _IDENTITY, "rlflow has rows of this kind built in: self_cognition:qwen3#600 needs no download")


def _held_out(settings: Settings, draft: Draft) -> None:
    """A validation set is a source that is held out whole; a ratio is taken of each data set, as ms-swift does."""
    sources: list[Any] = draft.document["data"]["sources"]
    ratio, names = settings["split_dataset_ratio"], settings["dataset"]
    if settings["val_dataset"]:
        sources += [_source(name, settings, draft, "all") for name in settings["val_dataset"]]
        if settings.gives("split_dataset_ratio"):
            draft.note("same", settings.written["split_dataset_ratio"], "val_dataset decides")
    elif ratio and len(names) > 1:
        draft.document["data"]["sources"] = [_source(name, settings, Draft(draft.kind), ratio) for name in names]
    else:
        draft.set("data.held_out", ratio, given=False)


def holds_out(draft: Draft) -> bool:
    """Whether rows are kept for evaluation."""
    data = draft.document["data"]
    return bool(data.get("held_out")) or any(isinstance(each, dict) and each.get("held_out") for each in data["sources"])


def hold_nothing_out(draft: Draft) -> None:
    """Take what is held out back: a validation set is no source any more."""
    data = draft.document["data"]
    data.pop("held_out", None)
    data["sources"] = [each for each in data["sources"] if not isinstance(each, dict) or each.get("held_out") != "all"]
    for each in data["sources"]:
        if isinstance(each, dict):
            each.pop("held_out", None)
    if "mix" in data:
        data["mix"]["weights"] = data["mix"]["weights"][: len(data["sources"])]


def _mix(settings: Settings, draft: Draft) -> None:
    """`data.mix`."""
    weights, sources = settings["interleave_prob"], draft.document["data"]["sources"]
    if weights is None:
        if settings.gives("stopping_strategy"):
            draft.note("same", settings.written["stopping_strategy"], "has no effect without interleave_prob, there or here")
        return
    trained = len(settings["dataset"] or sources)
    if len(weights) != trained:
        raise UserError(f"{settings.written['interleave_prob']}: {len(weights)} probabilities for {trained} data sets")
    if len(sources) > trained:
        raise UserError(
            f"{settings.written['interleave_prob']}: cannot be converted with --val_dataset, which rlflow would draw from too; "
            "use --split_dataset_ratio"
        )
    draft.set("data.mix", {"weights": weights, "stop": settings["stopping_strategy"] or "first_exhausted"})
    draft.note(
        "changed", settings.written["interleave_prob"], "rows are mixed first and held out then; there the other way round"
    )


def _streaming(settings: Settings, draft: Draft) -> None:
    """`data.streaming`, for SFT where nothing needs to know how many rows there are."""
    size, data = settings["shuffle_buffer_size"], draft.document["data"]
    obstacles = {
        f"a job of kind {draft.kind} loads its rows first": draft.kind != "sft",
        "without max_steps the rows must be counted": (settings["max_steps"] or 0) <= 0,
        "a number of rows is taken of a data set": any("#" in name for name in settings["dataset"] or ()),
        "a share of rows is held out": isinstance(settings["split_dataset_ratio"], float) and settings["split_dataset_ratio"] > 0,
        "stopping_strategy needs all rows": (data.get("mix") or {}).get("stop") == "all_exhausted",
    }
    found = [why for why, applies in obstacles.items() if applies]
    streams = settings["streaming"] and not found
    if streams:
        draft.set("data.streaming", {"buffer_rows": size})
        draft.note("changed", settings.written["streaming"], "buffers are shuffled one by one; the next is read during training")
    elif settings["streaming"]:
        draft.note("no equivalent", settings.written["streaming"], f"{found[0]}: data sets are loaded before training")
    elif settings.gives("streaming"):
        draft.note("same", settings.written["streaming"], "off, as here")
    if settings.gives("shuffle_buffer_size") and not streams:
        draft.note("no equivalent", settings.written["shuffle_buffer_size"], "rows are shuffled as a whole")


def _limit(settings: Settings, draft: Draft, field: str) -> None:
    length = settings["max_length"]
    if draft.kind == "infer" and settings["vllm_max_model_len"] and settings["max_new_tokens"]:
        length = settings["vllm_max_model_len"] - settings["max_new_tokens"]
    draft.set(field, length)
    if length is None and draft.kind != "infer":
        draft.note("changed", "max_length", f"ms-swift takes the model's own limit; here {field} is its default; set it")
    if draft.kind == "infer":
        return
    strategy = settings["truncation_strategy"] or ("left" if draft.kind in ("grpo", "gkd", "ppo") else "delete")
    if strategy not in _OVERLONG:
        raise UserError(f"{settings.written['truncation_strategy']}: is one of {', '.join(_OVERLONG)}")
    draft.set("data.overlong", _OVERLONG[strategy] if draft.kind == "sft" else "drop")
    if strategy == "split" and draft.kind == "sft":
        draft.note("changed", settings.written["truncation_strategy"], "is for rows of plain text (`text`); it refuses others")
    if strategy != "delete" and draft.kind != "sft":
        what = settings.written.get("truncation_strategy", "truncation_strategy left (its default here)")
        draft.note("changed", what, f"rows longer than {field} are dropped and counted, not cut")
