"""An ms-swift command to an rlflow spec or command, with notes on whatever is not the same."""

import shlex
from dataclasses import dataclass

import yaml

from rlflow.convert import export, infer, megatron, rlhf, rlhf_flags, shared_flags
from rlflow.convert.command import Command, read_command
from rlflow.convert.devices import Devices, devices_of
from rlflow.convert.draft import NOTE_KINDS, Draft, Note
from rlflow.convert.flags import SECRETS, Settings, Version
from rlflow.convert.sources import convert_data, convert_loss_scale
from rlflow.convert.training import (
    convert_batch,
    convert_evaluation,
    convert_length,
    convert_model,
    convert_optimizer,
    convert_parallelism,
    convert_run,
    note_unused,
)
from rlflow.errors import UserError
from rlflow.spec.jobs import JOB_KINDS
from rlflow.spec.load import parse_job

_PLACEMENT = ("CUDA_VISIBLE_DEVICES", "NPROC_PER_NODE", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables of a launcher; Ray places processes."""
TABLES = {
    "swift sft": ({**shared_flags.MODEL, **shared_flags.DATA, **shared_flags.TRAINING}, shared_flags.OLD_NAMES),
    "swift rlhf": (
        {**shared_flags.MODEL, **shared_flags.DATA, **shared_flags.TRAINING, **rlhf_flags.RLHF},
        shared_flags.OLD_NAMES | rlhf_flags.OLD_NAMES,
    ),
    "swift infer": (infer.INFER, shared_flags.OLD_NAMES | infer.OLD_NAMES),
    "swift export": (export.EXPORT, shared_flags.OLD_NAMES | {"ckpt_dir": "adapters"}),
    "megatron sft": (megatron.MEGATRON, shared_flags.OLD_NAMES | megatron.OLD_NAMES),
}


@dataclass(frozen=True, slots=True)
class Converted:
    """A spec, or a command line, and what to know about it."""

    original: str
    """The command on one line, without secrets."""
    result: dict[str, object] | list[str]
    """The spec's document, or the words of an `rlflow` command."""
    notes: list[Note]

    def __str__(self) -> str:
        """What can be saved to a file and run."""
        if isinstance(self.result, list):
            return f"# {self.original}\n{shlex.join(self.result)}\n"
        return f"# {self.original}\n{yaml.safe_dump(self.result, sort_keys=False, allow_unicode=True, width=120)}"


def convert(text: str, version: Version | None = None, gpus: int | None = None) -> Converted:
    """Convert the one ms-swift command of a shell text.

    Args:
        version: of ms-swift, whose defaults count; if not given, that whose flag names the command has, else 3.6.
        gpus: of all nodes together, where the command does not say it.

    Raises:
        UserError: the command cannot be read, or asks for what rlflow cannot do; one line a problem.
    """
    command = read_command(text)
    draft = Draft("")
    for words in command.left_out:
        draft.note("no equivalent", words, "is not part of the command, and left out")
    table, old_names = TABLES[command.name]
    settings = Settings(command.name, command.arguments, table, old_names, version or _version_of(command))
    _note_variables(command, settings, draft)
    draft.apply_notes(settings)
    match command.name:
        case "swift export":
            result = export.export_command(settings, draft)
        case "swift infer" if infer.is_chat(settings):
            result = infer.chat_command(settings, draft)
        case _:
            result = _convert_job(command, settings, draft, gpus)
    idle = f"has no effect in this {command.name}, there or here"
    note_unused(settings, draft, f"`rlflow {result[1]}` has nothing like it" if isinstance(result, list) else idle)
    return Converted(_without_secrets(command), result, sorted(draft.notes, key=lambda note: NOTE_KINDS.index(note.kind)))


def _note_variables(command: Command, settings: Settings, draft: Draft) -> None:
    """Environment variables: those that rlflow needs no more, and those that belong to where the job runs."""
    for name, value in command.variables.items():
        if name == "USE_HF":
            settings.derive("use_hf", value in ("1", "true", "True"))
        elif name not in _PLACEMENT:
            shown = "***" if _is_secret(name) else value
            draft.note(
                "no equivalent", f"{name}={shown}", "an environment variable: set it where the job runs, if it is still needed"
            )


def _is_secret(name: str) -> bool:
    return any(word in name.upper() for word in ("TOKEN", "KEY", "SECRET", "PASSWORD"))


def read_version(text: str | None) -> Version | None:
    """`3.6` or `4`, or a version that begins so. Raises `UserError`."""
    if text is None:
        return None
    if text.split(".")[0] not in ("3", "4"):
        raise UserError(f"--swift-version {text}: is 3.6 or 4")
    return "4" if text.startswith("4") else "3.6"


def _convert_job(command: Command, settings: Settings, draft: Draft, gpus: int | None) -> dict[str, object]:
    draft.kind = _kind_of(command, settings)
    draft.document |= {"kind": draft.kind, "run": {}, "model": {}, "data": {}, "learner": {}}
    fewest = megatron.fewest_gpus(settings) if command.name == "megatron sft" else 1
    devices = devices_of(command, draft, gpus, fewest)
    if draft.kind == "infer":
        del draft.document["learner"]
        infer.convert_batch_inference(settings, draft, devices)
    elif command.name == "megatron sft":
        megatron.convert_megatron_sft(settings, draft, devices)
    else:
        _convert_training(settings, draft, devices)
    draft.apply_fields(settings)
    document = {name: value for name, value in draft.document.items() if value != {}}
    if draft.kind in JOB_KINDS:
        parse_job(document, origin="the converted spec")
    return document


def _convert_training(settings: Settings, draft: Draft, devices: Devices) -> None:
    convert_run(settings, draft)
    convert_model(settings, draft)
    samples = draft.kind in ("grpo", "ppo", "gkd")
    convert_data(settings, draft, "data.max_prompt_tokens" if samples else "data.max_tokens")
    convert_parallelism(settings, draft, devices)
    convert_optimizer(settings, draft)
    convert_loss_scale(settings, draft)
    if draft.kind == "sft":
        convert_batch(settings, draft, devices)
        draft.set("label_smoothing", settings["label_smoothing_factor"] or None)
    else:
        rlhf.convert_kind(settings, draft, devices)
    convert_length(settings, draft)
    convert_evaluation(settings, draft)


def _kind_of(command: Command, settings: Settings) -> str:
    if command.name == "swift infer":
        return "infer"
    return rlhf.kind_of(settings) if command.name == "swift rlhf" else "sft"


def _version_of(command: Command) -> Version:
    """That whose flag names the command has; of one that both know, the one that the names and meanings of 3 stayed with."""
    flags = {word[2:].partition("=")[0].replace("-", "_") for word in command.arguments if word.startswith("--")}
    if flags & set(shared_flags.OLD_ONLY):
        return "3.6"
    return "4" if flags & set(shared_flags.NEW_ONLY) else "3.6"


def _without_secrets(command: Command) -> str:
    words = list(command.words)
    for index, word in enumerate(words):
        flag, equals, _ = word.partition("=")
        if flag.removeprefix("--").replace("-", "_") not in SECRETS:
            continue
        if equals:
            words[index] = f"{flag}=***"
        elif index + 1 < len(words):
            words[index + 1] = "***"
    variables = [
        f"{name}={shlex.quote(value)}" for name, value in command.variables.items() if "TOKEN" not in name and "KEY" not in name
    ]
    return " ".join([*variables, shlex.join(words)]).replace("\n", " ")
