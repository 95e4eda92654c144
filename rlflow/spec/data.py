"""What data a job reads, how it is mixed, rendered and limited."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from rlflow.spec.base import Spec
from rlflow.spec.sources import HeldOut, LanguagePair, SelfCognitionSource, SourceSpec, parse_source

_SourcesInput = str | SourceSpec | Annotated[tuple[str | SourceSpec, ...], Field(min_length=1)]


class MixSpec(Spec):
    """Sources mixed by probability (`datasets.interleave_datasets`; in a stream row by row), seeded by `data.seed`."""

    weights: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)
    """How often each source is drawn from, relative to the others; one for each source."""

    stop: Literal["first_exhausted", "all_exhausted"] = "first_exhausted"
    """Stop when the first source has no row left, or start sources anew until every one of them was read whole."""


class StreamingSpec(Spec):
    """Rows are read while the job trains, and never loaded whole."""

    buffer_rows: int = Field(default=10_000, ge=1)
    """Rows that are read, shuffled and tokenised together: more of them mix better, and make the start slower."""


class LossWeightSpec(Spec):
    """What a regular expression finds in an assistant turn counts more, less, or not at all."""

    pattern: str
    """Regular expression, searched in each assistant turn without its end token; `^` is its start, `.` also a line break."""

    weight: float = Field(ge=0)
    """Factor on the weight of what was found; 0: not trained."""

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{value!r} is no regular expression: {error}") from None
        return value


PackagedLossWeights = Literal["hermes", "qwen", "react", "agentflan", "alpha_umi", "ignore_think_prefix"]
LossWeights = PackagedLossWeights | LossWeightSpec


class DataSpec(Spec):
    """The rows of a job: where they come from, and how they become token sequences."""

    sources: tuple[SourceSpec, ...] = Field(min_length=1)
    """Where rows come from. Strings are short for sources: `rows.jsonl#500`, `org/name:subset#500` (`MS::` in front: of
    ModelScope), `reasoning_gym:task#500`, `self_cognition:qwen3#500`."""

    model_name: str | LanguagePair | None = None
    """What the model calls itself in `self_cognition` sources that do not say."""

    model_author: str | LanguagePair | None = None
    """Who made the model, in `self_cognition` sources that do not say."""

    mix: MixSpec | None = None
    """Draw from the sources by weight. Unset: one after the other, every row once."""

    streaming: StreamingSpec | None = None
    """Read the sources while the job trains, over and over, instead of loading them first (`{}` for the defaults): for data that
    do not fit the disk. Rows are shuffled within a buffer; the first ones can be held out; the job needs `steps`. SFT only."""

    held_out: HeldOut = 0
    """Rows (a whole number) or fraction (below 1.0) of the mixed rows kept for evaluation; of sources without their own."""

    seed: int = Field(default=42, ge=0)
    """Seed of sampling, held-out split and order; keep it the same in every job of a chain (ms-swift: 42)."""

    shuffle: bool = True
    """Sample at random and permute the rows anew in every epoch. False: first rows, in their order."""

    max_prompt_tokens: int = Field(default=1024, ge=1)
    """Longest prompt of a rollout, in tokens."""

    max_tokens: int = Field(default=2048, ge=1)
    """Longest training conversation (SFT), prompt and answers together, in tokens."""

    overlong: Literal["error", "drop", "truncate_left", "truncate_right", "split"] = "error"
    """What to do with a row beyond its limit: stop and name it (error), or drop it and say how many were dropped. For SFT also:
    keep its last (truncate_left) or first (truncate_right) `max_tokens` tokens, or make several rows of a plain text (split)."""

    chat_template: str | None = None
    """A packaged template (`qwen3`) or a .jinja file, for base models. Unset: the tokenizer's own."""

    chat_template_kwargs: dict[str, Any] = Field(default={})
    """Passed to the chat template, such as `enable_thinking: false`."""

    loss: Literal["default", "last_round", "all"] = "default"
    """What SFT trains on: every assistant turn, only those after the last user turn, or every token."""

    ignore_empty_think: bool = False
    """Give an empty `<think></think>` block at the start of an assistant turn no loss."""

    loss_weights: tuple[LossWeights, ...] = ()
    """How much parts of assistant turns count in the loss of SFT: `{pattern, weight}`, or the name of a packaged set
    (ms-swift's): `hermes`, `qwen`, `react`, `agentflan`, `alpha_umi`, `ignore_think_prefix`. Overlapping weights multiply."""

    system: str | None = None
    """System prompt of rows that have none."""

    @property
    def holds_out(self) -> bool:
        """Whether rows are kept for evaluation."""
        return bool(self.held_out) or any(source.held_out for source in self.sources)

    @field_validator("sources", mode="before", json_schema_input_type=_SourcesInput)
    @classmethod
    def _expand_strings(cls, value: Any) -> Any:
        values = [value] if isinstance(value, str | dict) else value
        if not isinstance(values, list | tuple):
            return values
        return [parse_source(item) if isinstance(item, str) else item for item in values]

    def contradictions(self) -> Iterator[str]:
        """Between the sources and what is said of them together."""
        if self.mix is not None and len(self.mix.weights) != len(self.sources):
            yield f"mix.weights: {len(self.mix.weights)} weights for {len(self.sources)} sources; write one for each"
        if self.held_out and all(source.held_out is not None for source in self.sources):
            yield "held_out: every source has its own held_out, so this would be ignored; remove it"
        yield from self._identity_problems()
        if self.streaming is not None:
            yield from self._streaming_problems()

    def _streaming_problems(self) -> Iterator[str]:
        """What needs all rows."""
        shares = {
            "held_out": self.held_out,
            **{f"sources[{i}].held_out": source.held_out for i, source in enumerate(self.sources)},
        }
        for name, value in shares.items():
            if isinstance(value, float):
                yield f"{name}: {value} is a share of rows that data.streaming does not count; write a number of rows"
        for number, source in enumerate(self.sources):
            if source.sample is not None:
                yield f"sources[{number}].sample: data.streaming reads as many rows as the job needs; remove one of them"
        if self.mix is not None and self.mix.stop != "first_exhausted":
            yield "mix.stop: with data.streaming every source starts anew when it ends; remove it"

    def _identity_problems(self) -> Iterator[str]:
        """Names that are missing, and those that nothing uses."""
        selves = {i: source for i, source in enumerate(self.sources) if isinstance(source, SelfCognitionSource)}
        for given, field in (("name", "model_name"), ("author", "model_author")):
            unnamed = [number for number, source in selves.items() if getattr(source, given) is None]
            if getattr(self, field) is not None and not unnamed:
                yield f"{field}: no self_cognition source uses it; remove it"
            elif getattr(self, field) is None:
                yield from (f"sources[{number}].{given}: missing; set it, or data.{field}" for number in unnamed)
