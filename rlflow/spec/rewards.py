"""Specs of rewards: what scores a completion, with which weight and time limit."""

import re
from collections.abc import Iterator, Sequence
from string import Formatter
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from rlflow.errors import SpecError
from rlflow.spec.base import Spec
from rlflow.spec.model import OtherModelSpec
from rlflow.spec.rollout import EngineSpec

THINK_ANSWER_PATTERN = r"<think>.*?</think>\s*<answer>.*?</answer>"
NAME_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*$"


class _RewardFields(Spec):
    name: str | None = Field(default=None, pattern=NAME_PATTERN)
    """Name in metrics and logs (`reward_<name>_mean`); null: the type, or the plugin's own name."""
    weight: float = 1.0
    """Factor of this reward in the weighted sum of all rewards. 1.0 as in ms-swift and TRL."""
    timeout_s: PositiveFloat = 30.0
    """Seconds one call may take before its process is killed and the samples of that call count as failed."""


class AccuracySpec(_RewardFields):
    """1.0 if the completion's final answer equals the gold answer mathematically, else 0.0."""

    type: Literal["accuracy"] = "accuracy"
    """Kind of reward."""
    column: str = "solution"
    """Column of the data row that holds the gold answer: text, LaTeX or a number. Named as in ms-swift."""


class FormatSpec(_RewardFields):
    """1.0 if the whole completion matches a regular expression, else 0.0."""

    type: Literal["format"] = "format"
    """Kind of reward."""
    pattern: str = THINK_ANSWER_PATTERN
    """Python regular expression that must match from first to last character; `.` also matches newlines.
    Default: ms-swift's think/answer format."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return pattern


class CosineSpec(_RewardFields):
    """Accuracy scaled by length: right answers earn more when short, wrong ones lose less when long."""

    type: Literal["cosine"] = "cosine"
    """Kind of reward."""
    column: str = "solution"
    """Column of the data row that holds the gold answer."""
    min_len_value_correct: float = 1.0
    """Reward of a correct completion of length 0. ms-swift."""
    max_len_value_correct: float = 0.5
    """Reward of a correct completion of `max_tokens` or more. ms-swift."""
    min_len_value_wrong: float = -0.5
    """Reward of a wrong completion of length 0. ms-swift."""
    max_len_value_wrong: float = 0.0
    """Reward of a wrong completion of `max_tokens` or more. ms-swift."""
    max_tokens: PositiveInt | None = None
    """Length in tokens at which the cosine ends; null: the rollout's `max_completion_tokens`."""


class SoftOverlongSpec(_RewardFields):
    """0 up to `max_tokens - cache_tokens`, then falling linearly to -1 at `max_tokens` (DAPO, eq. 13)."""

    type: Literal["soft_overlong"] = "soft_overlong"
    """Kind of reward."""
    max_tokens: PositiveInt | None = None
    """Length in tokens at which the penalty reaches -1; null: the rollout's `max_completion_tokens`."""
    cache_tokens: PositiveInt
    """Width in tokens of the slope below `max_tokens`; must be smaller than it. DAPO: 4096 of 20480."""

    @model_validator(mode="after")
    def _slope_fits(self) -> Self:
        if self.max_tokens is not None and self.cache_tokens >= self.max_tokens:
            raise ValueError(f"cache_tokens ({self.cache_tokens}) must be smaller than max_tokens ({self.max_tokens})")
        return self


class RepetitionSpec(_RewardFields):
    """A penalty for repeated n-grams of words: 0 if all are different, `max_penalty` times the share that repeats others."""

    type: Literal["repetition"] = "repetition"
    """Kind of reward."""
    ngram: PositiveInt = 3
    """Words in an n-gram. ms-swift."""
    max_penalty: float = Field(default=-1.0, le=0)
    """Value that is approached as all n-grams become the same. ms-swift."""


class PluginSpec(_RewardFields):
    """A reward written by the user or by an installed package."""

    type: Literal["plugin"] = "plugin"
    """Kind of reward."""
    target: str
    """`path/file.py:name`, `package.module:name`, or the name of an entry point of group `rlflow.rewards`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the class's constructor; functions take none."""
    completions: Literal["text", "messages"] = "text"
    """Shape of `prompts` and `completions` given to functions of TRL's style: strings, or lists of
    role/content messages as TRL's conversational functions want them."""

    @field_validator("target")
    @classmethod
    def _names_an_object(cls, target: str) -> str:
        place, colon, name = target.rpartition(":")
        if target.endswith(".py") or not target or (colon and not (place and name)):
            raise ValueError("must be path/file.py:name, package.module:name or an entry point's name")
        return target


class ModelRewardSpec(_RewardFields, OtherModelSpec):
    """The score of a reward model: one of `path` and `from_run` (a run of `kind: rm`, or any sequence classifier with one label).
    The conversation is rendered by its tokenizer's chat template.
    """

    type: Literal["model"] = "model"
    """Kind of reward."""
    device: Literal["auto", "cpu"] = "auto"
    """auto: a GPU where the job runs on GPUs; the model keeps a part of its memory, beside learner and engine. cpu: the processor
    in any case."""
    timeout_s: PositiveFloat = 120.0
    """Seconds that a group of completions may take; also loading the model, for which there are at least 60."""
    batch_size: PositiveInt = 16
    """Conversations that go through the model together."""
    max_tokens: PositiveInt = 4096
    """Longest conversation, prompt and completion together; a longer one fails its group."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Data type of the weights; auto: bfloat16 on a GPU, float32 on the processor."""
    num_threads: PositiveInt = 1
    """CPU threads, for a model on the processor."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if not self.is_given:
            raise ValueError("set exactly one of path and from_run")
        return self


class JudgeEngineSpec(EngineSpec):
    """vLLM engines that hold a judge, on devices of their own: `num_workers` times `tensor_parallel_size` of them."""

    max_model_tokens: int = Field(default=8192, ge=1)
    """Longest question and answer of the judge together, in tokens; its cache holds at least one such sequence."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Data type of the weights; auto: the model's own."""


class JudgeSpec(_RewardFields):
    """A number that a generative judge writes about the completion: behind an OpenAI-compatible endpoint, or in engines that the
    job starts. Set one of `endpoint` and `engine`.
    """

    type: Literal["judge"] = "judge"
    """Kind of reward."""
    endpoint: str | None = Field(default=None, pattern=r"^https?://")
    """Base URL, such as `http://host:8000/v1`; requests go to its `/chat/completions`."""
    engine: JudgeEngineSpec | None = None
    """Start engines for the judge; `{}` for all defaults."""
    model: str
    """Name of the model at the endpoint; for an engine its directory or hub id."""
    prompt: str
    """What the judge is asked: a template over `{prompt}` (the last user turn), `{completion}` and the row's columns; write
    braces twice."""
    pattern: str = r"Reward:\s*([-+]?[0-9]*\.?[0-9]+)"
    """Regular expression with one group, the number; the last match in the answer counts. No match: the sample failed."""
    timeout_s: PositiveFloat = 300.0
    """Seconds that a completion's reward may take, with waiting and retries."""
    request_timeout_s: PositiveFloat = 60.0
    """Seconds that one request may take."""
    max_concurrent: PositiveInt = 8
    """Requests in flight at a time, of each reward worker."""
    max_retries: int = Field(default=3, ge=0)
    """Further tries after a lost connection, a time limit or a status such as 429 and 503."""
    backoff_s: float = Field(default=1.0, ge=0)
    """Pause before the first retry, in seconds; doubled before each further one."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature of the judge."""
    max_tokens: PositiveInt = 1024
    """Longest answer of the judge, in tokens."""
    api_key_variable: str | None = None
    """Environment variable that holds the key sent as bearer token; keys are never part of a spec."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.endpoint is None) == (self.engine is None):
            raise ValueError("set exactly one of endpoint and engine")
        if self.engine is not None and self.api_key_variable is not None:
            raise ValueError("api_key_variable: an engine of the job asks for no key; leave it out")
        return self

    @field_validator("pattern")
    @classmethod
    def _has_one_group(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        if groups != 1:
            raise ValueError(f"needs exactly one group, the number; it has {groups}")
        return pattern

    @field_validator("prompt")
    @classmethod
    def _shows_the_completion(cls, prompt: str) -> str:
        try:
            names = [name for _, name, _, _ in Formatter().parse(prompt)]
        except ValueError as error:
            raise ValueError(f"not a template: {error}") from error
        if "completion" not in names:
            raise ValueError("the judge sees nothing to judge: there is no {completion} in it")
        return prompt


RewardSpec = Annotated[
    AccuracySpec | FormatSpec | CosineSpec | SoftOverlongSpec | RepetitionSpec | PluginSpec | ModelRewardSpec | JudgeSpec,
    Field(discriminator="type"),
]


class RewardPoolSpec(Spec):
    """How rewards are computed beside the other work of a step."""

    num_workers: PositiveInt = 1
    """Number of Ray reward workers; each runs every reward in a process of its own."""
    failure_threshold: float = Field(default=0.1, ge=0.0, le=1.0)
    """Fraction of a step's samples whose reward may fail; above it the job fails and shows the errors."""


def judges_in_engines(specs: Sequence[RewardSpec]) -> dict[int, tuple[JudgeSpec, JudgeEngineSpec]]:
    """Judges that the job starts engines for, with the settings of these, by their place among the rewards."""
    return {i: (spec, spec.engine) for i, spec in enumerate(specs) if isinstance(spec, JudgeSpec) and spec.engine is not None}


def on_processor(specs: Sequence[RewardSpec]) -> tuple[RewardSpec, ...]:
    """The same with reward models that leave GPUs alone."""
    return tuple(s.model_copy(update={"device": "cpu"}) if isinstance(s, ModelRewardSpec) else s for s in specs)


def default_name(spec: RewardSpec) -> str:
    """`spec.name`, else the plugin's function or class name, else the type."""
    if spec.name is not None:
        return spec.name
    if isinstance(spec, PluginSpec):
        return re.sub(r"\W|^(?=\d)", "_", spec.target.rpartition(":")[2].rpartition(".")[2])
    return spec.type


def resolve_names(specs: Sequence[RewardSpec]) -> list[str]:
    """One name per reward, in order. Raises SpecError if two rewards would share one, or one has the sum's."""
    if problems := list(name_problems(specs)):
        raise SpecError("\n".join(problems))
    return [default_name(spec) for spec in specs]


def name_problems(specs: Sequence[RewardSpec]) -> Iterator[str]:
    """Names that two rewards share, or that belong to the sum; one line each."""
    names = [default_name(spec) for spec in specs]
    for index, name in enumerate(names):
        if name == "reward":
            yield f"rewards[{index}]: the name 'reward' is that of the weighted sum; give it another `name`"
        elif name in names[:index]:
            yield (
                f"rewards[{index}]: the name '{name}' is already taken by rewards[{names.index(name)}]; "
                "give one of them another `name`"
            )


def with_token_limits(spec: RewardSpec, max_completion_tokens: int) -> RewardSpec:
    """`spec` with a null `max_tokens` replaced by `max_completion_tokens`.

    Raises SpecError if `cache_tokens` does not fit below the limit.
    """
    if not isinstance(spec, CosineSpec | SoftOverlongSpec) or spec.max_tokens is not None:
        return spec
    if isinstance(spec, SoftOverlongSpec) and spec.cache_tokens >= max_completion_tokens:
        raise SpecError(
            f"reward '{default_name(spec)}': cache_tokens ({spec.cache_tokens}) must be smaller than "
            f"max_completion_tokens ({max_completion_tokens})"
        )
    return spec.model_copy(update={"max_tokens": max_completion_tokens})
