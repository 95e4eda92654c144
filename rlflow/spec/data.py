"""What data a job reads, how it is mixed, rendered and limited."""

import os
import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from rlflow.spec.base import Spec

FILE_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


class BaseSource(Spec):
    """What all kinds of sources have in common."""

    sample: int | None = Field(default=None, ge=1)
    """Rows taken from this source; more than it has: whole repeats and a random remainder. Unset: all."""

    columns: dict[str, str] = Field(default={})
    """Columns to rename, `{name in the data: new name}`, before the row format is detected."""


class FileSource(BaseSource):
    """Rows of a local file, or of every such file of a directory."""

    type: Literal["file"] = "file"
    """Kind of source."""

    path: str
    """A .json, .jsonl, .csv or .parquet file, or a directory of them; relative to the working directory."""


class HubSource(BaseSource):
    """Rows of a data set of the Hugging Face hub."""

    type: Literal["hub"] = "hub"
    """Kind of source."""

    id: str
    """Data set id, such as `org/name`."""

    subset: str | None = None
    """Subset (configuration) of the data set; several are joined by `/` and read one after the other."""

    split: str = "train"
    """Split of the data set; slices such as `train[:10%]` work too."""


class ReasoningGymSource(BaseSource):
    """Generated puzzles with a checkable answer, in the columns `solution` and `answer`; also `task`."""

    type: Literal["reasoning_gym"] = "reasoning_gym"
    """Kind of source."""

    task: str
    """Name of a reasoning-gym task, such as `chain_sum`."""

    size: int = Field(default=1000, ge=1)
    """Rows to generate; no two have the same prompt, so that a held-out split is truly held out."""

    seed: int = Field(default=42, ge=0)
    """Seed of the generator."""

    options: dict[str, Any] = Field(default={})
    """Configuration of the task, such as `min_terms`."""

    prompt: str = "{question}"
    """Template of the user turn over `question`, `answer` and the task's metadata, such as `{expression}`."""

    remove_prompt_spaces: bool = False
    """Remove every space from the prompt: keeps the sequences of character-level models short."""


SourceSpec = Annotated[FileSource | HubSource | ReasoningGymSource, Field(discriminator="type")]
_SourcesInput = str | SourceSpec | Annotated[tuple[str | SourceSpec, ...], Field(min_length=1)]


class DataSpec(Spec):
    """The rows of a job: where they come from, and how they become token sequences."""

    sources: tuple[SourceSpec, ...] = Field(min_length=1)
    """Where rows come from. Strings are short for `file`, `hub` and `reasoning_gym` sources:
    `rows.jsonl#500`, `org/name:subset#500`, `reasoning_gym:task#500`."""

    held_out: int | float = Field(default=0, ge=0)
    """Rows (a whole number) or fraction (below 1.0) of the mixed rows kept for evaluation."""

    seed: int = Field(default=42, ge=0)
    """Seed of sampling, held-out split and order; keep it the same in every job of a chain (ms-swift: 42)."""

    shuffle: bool = True
    """Sample at random and permute the rows anew in every epoch. False: first rows, in their order."""

    max_prompt_tokens: int = Field(default=1024, ge=1)
    """Longest prompt of a rollout, in tokens."""

    max_tokens: int = Field(default=2048, ge=1)
    """Longest training conversation (SFT), prompt and answers together, in tokens."""

    overlong: Literal["error", "drop"] = "error"
    """What to do with a row beyond its limit: stop and name it, or drop it and say how many were dropped."""

    chat_template: str | None = None
    """A packaged template (`qwen3`) or a .jinja file, for base models. Unset: the tokenizer's own."""

    chat_template_kwargs: dict[str, Any] = Field(default={})
    """Passed to the chat template, such as `enable_thinking: false`."""

    loss: Literal["default", "last_round", "all"] = "default"
    """What SFT trains on: every assistant turn, only those after the last user turn, or every token."""

    ignore_empty_think: bool = False
    """Give an empty `<think></think>` block at the start of an assistant turn no loss."""

    system: str | None = None
    """System prompt of rows that have none."""

    @field_validator("sources", mode="before", json_schema_input_type=_SourcesInput)
    @classmethod
    def _expand_strings(cls, value: Any) -> Any:
        values = [value] if isinstance(value, str | dict) else value
        if not isinstance(values, list | tuple):
            return values
        return [parse_source(item) if isinstance(item, str) else item for item in values]

    @field_validator("held_out")
    @classmethod
    def _check_held_out(cls, value: float) -> float:
        if isinstance(value, float) and value >= 1:
            raise ValueError(f"{value} is not a fraction below 1.0; write a whole number for a number of rows")
        return value


def parse_source(text: str) -> dict[str, Any]:
    """The source a string is short for: `[HF::]<path or id>[:subset][#rows]`, `reasoning_gym:<task>[#rows]`.

    A path that exists is taken whole first; a name that ends like a data file is one even if it is missing.

    Raises:
        ValueError: the string is none of these forms.
    """
    if os.path.exists(text):
        return {"type": "file", "path": text}
    if text.startswith("MS::"):
        raise ValueError(f"{text!r}: ModelScope is not supported; name the data set's Hugging Face id")
    name, rows = _split_rows(text.removeprefix("HF::"))
    if name.startswith("reasoning_gym:"):
        task = {"type": "reasoning_gym", "task": name.removeprefix("reasoning_gym:")}
        return task if rows is None else task | {"size": rows}
    sample = {} if rows is None else {"sample": rows}
    if not text.startswith("HF::") and _is_file(name):
        return {"type": "file", "path": name, **sample}
    hub_id, _, subset = name.partition(":")
    if not _HUB_ID.fullmatch(hub_id):
        raise ValueError(f"{text!r} is neither a file nor a data set id; write `path.jsonl#N` or `org/name:subset#N`")
    return {"type": "hub", "id": hub_id, "subset": subset or None, **sample}


def _split_rows(text: str) -> tuple[str, int | None]:
    head, mark, rows = text.rpartition("#")
    if not mark:
        return text, None
    if not rows.isdecimal():
        raise ValueError(f"{text!r}: what follows # must be a number of rows")
    return head, int(rows)


def _is_file(name: str) -> bool:
    return os.path.exists(name) or name.endswith(FILE_SUFFIXES) or name.startswith((".", "/", "~"))
