"""Sources of rows, and the strings that are short for them."""

import os
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from rlflow.spec.base import Spec

FILE_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".txt")
Hub = Literal["huggingface", "modelscope"]
_HUBS: dict[str, Hub] = {"HF::": "huggingface", "MS::": "modelscope"}
_SELF_COGNITION = ("swift/self-cognition", "modelscope/self-cognition")
"""The same data set on ModelScope and on the Hugging Face hub."""
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def _check_held_out(value: int | float) -> int | float:
    if isinstance(value, float) and value >= 1:
        raise ValueError(f"{value} is not a fraction below 1.0; write a whole number for a number of rows")
    return value


HeldOut = Annotated[int | float, Field(ge=0), AfterValidator(_check_held_out)]
"""A number of rows, or a fraction of them below 1.0."""


class BaseSource(Spec):
    """What all kinds of sources have in common."""

    sample: int | None = Field(default=None, ge=1)
    """Rows taken from this source; more than it has: whole repeats and a random remainder. Unset: all."""

    columns: dict[str, str] = Field(default={})
    """Columns to rename, `{name in the data: new name}`, before the row format is detected."""

    held_out: HeldOut | Literal["all"] | None = None
    """Rows (a whole number) or fraction (below 1.0) of this source kept for evaluation, or all of them: a validation set.
    Unset: `data.held_out` decides, for all such sources together."""


class FileSource(BaseSource):
    """Rows of a local file, or of every such file of a directory."""

    type: Literal["file"] = "file"
    """Kind of source."""

    path: str
    """A .json, .jsonl, .csv, .parquet or .txt file (a text a line), or a directory of them; relative to the working directory."""


class HubSource(BaseSource):
    """Rows of a data set of the Hugging Face hub, or of ModelScope."""

    type: Literal["hub"] = "hub"
    """Kind of source."""

    id: str
    """Data set id, such as `org/name`."""

    subset: str | None = None
    """Subset (configuration) of the data set; several are joined by `/` and read one after the other, and
    `all` are all that it has (on the Hugging Face hub)."""

    split: str = "train"
    """Split of the data set; slices such as `train[:10%]` work too on the Hugging Face hub."""

    hub: Hub = "huggingface"
    """Where the data set lies; `modelscope` needs the package modelscope (`pip install modelscope`)."""

    def contradictions(self) -> Iterator[str]:
        """Rows whose placeholders nobody would fill."""
        if self.id in _SELF_COGNITION:
            yield f"id: {self.id} holds placeholders for a name and an author; use type: self_cognition with this id"
        if self.subset == "all" and self.hub == "modelscope":
            yield "subset: all subsets can only be listed on the Hugging Face hub; name them, joined by /"


class RunSource(BaseSource):
    """Answers that a run of `kind: infer` wrote: distilled, or sampled and selected. It may come earlier in the same chain."""

    type: Literal["run"] = "run"
    """Kind of source."""

    from_run: str = Field(min_length=1)
    """Name of the run, in the same runs directory."""


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


class LanguagePair(Spec):
    """A name in two languages."""

    zh: str = Field(min_length=1)
    """In Chinese rows."""

    en: str = Field(min_length=1)
    """In all other rows."""


class SelfCognitionSource(BaseSource):
    """Questions and answers about who the model is and who made it, with a name and an author of your choice (ms-swift's
    self-cognition): the built-in set of 112 rows, half English and half Chinese, or rows of your own.

    Rows have the columns `query`, `response` and `tag` (`zh`, or anything else), with `{{NAME}}` and `{{AUTHOR}}` in them.
    """

    type: Literal["self_cognition"] = "self_cognition"
    """Kind of source."""

    name: str | LanguagePair | None = None
    """What the model calls itself; one name, or one for each of `zh` and `en`. Unset: `data.model_name`."""

    author: str | LanguagePair | None = None
    """Who made the model; likewise. Unset: `data.model_author`."""

    variant: Literal["default", "qwen3", "empty_think"] = "default"
    """For models that think: `qwen3` adds `/no_think` to questions and an empty think block to answers, `empty_think` the block
    alone (train it with `data.ignore_empty_think`)."""

    path: str | None = None
    """A file of rows, instead of the built-in ones."""

    id: str | None = None
    """A data set of rows, such as `modelscope/self-cognition`, instead of the built-in ones."""

    hub: Hub = "huggingface"
    """Where the data set `id` lies."""

    def contradictions(self) -> Iterator[str]:
        """Between the places of rows."""
        if self.path is not None and self.id is not None:
            yield "set at most one of path and id"
        if self.hub != "huggingface" and self.id is None:
            yield "hub: needs id"


SourceSpec = Annotated[FileSource | HubSource | RunSource | ReasoningGymSource | SelfCognitionSource, Field(discriminator="type")]


def parse_source(text: str) -> dict[str, Any]:
    """The source a string is short for: `[HF::|MS::]<path or id>[:subset/subset][#rows]`, `reasoning_gym:<task>[#rows]`,
    `self_cognition[:variant][#rows]`.

    A path that exists is taken whole first; a name that ends like a data file is one even if it is missing.
    With `HF::` or `MS::` it is an id of that hub.

    Raises:
        ValueError: the string is none of these forms.
    """
    if os.path.exists(text):
        return {"type": "file", "path": text}
    prefix = next((prefix for prefix in _HUBS if text.startswith(prefix)), "")
    name, rows = _split_rows(text.removeprefix(prefix))
    if name.startswith("reasoning_gym:"):
        task = {"type": "reasoning_gym", "task": name.removeprefix("reasoning_gym:")}
        return task if rows is None else task | {"size": rows}
    sample = {} if rows is None else {"sample": rows}
    if name.partition(":")[0] == "self_cognition":
        return {"type": "self_cognition", "variant": name.partition(":")[2] or "default", **sample}
    if not prefix and _is_file(name):
        return {"type": "file", "path": name, **sample}
    hub_id, _, subset = name.partition(":")
    if not _HUB_ID.fullmatch(hub_id):
        raise ValueError(f"{text!r} is neither a file nor a data set id; write `path.jsonl#N` or `org/name:subset#N`")
    hub = {"hub": _HUBS[prefix]} if prefix else {}
    if hub_id in _SELF_COGNITION:
        known_id = hub_id if prefix == "MS::" else "modelscope/self-cognition"
        return {"type": "self_cognition", "id": known_id, "variant": subset or "default", **hub, **sample}
    return {"type": "hub", "id": hub_id, "subset": subset or None, **hub, **sample}


def _split_rows(text: str) -> tuple[str, int | None]:
    head, mark, rows = text.rpartition("#")
    if not mark:
        return text, None
    if not rows.isdecimal():
        raise ValueError(f"{text!r}: what follows # must be a number of rows")
    return head, int(rows)


def _is_file(name: str) -> bool:
    return os.path.exists(name) or name.endswith(FILE_SUFFIXES) or name.startswith((".", "/", "~"))
