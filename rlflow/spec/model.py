"""Which model a job starts from, and what of it is trained."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from rlflow.spec.base import Spec
from rlflow.spec.sources import Hub


class RandomModelSpec(Spec):
    """A model with random weights: for smoke tests, benchmarks and training from scratch."""

    config: str | dict[str, Any]
    """A packaged shape (`qwen3-0.6b`, ...), the path of a `config.json`, or the configuration's fields with `model_type`."""
    characters: str | None = None
    """Build a character-level tokenizer with a Qwen-style chat template over exactly these characters."""
    tokenizer: str | None = None
    """Path or hub id of an existing tokenizer, instead of `characters`."""
    seed: int = 0
    """Seed of the weights; the same weights in every run, whatever its own seed."""

    @model_validator(mode="after")
    def _one_tokenizer(self) -> Self:
        if (self.characters is None) == (self.tokenizer is None):
            raise ValueError("set exactly one of characters and tokenizer")
        return self


class LoraSpec(Spec):
    """Low-rank adapters (Hu et al. 2021) through peft; the base weights stay frozen, in `dtype` or quantised."""

    rank: int = Field(default=8, ge=1)
    """Rank r of the adapters (ms-swift default)."""
    alpha: float = Field(default=32.0, gt=0)
    """Scale: the update is alpha / rank times B A (ms-swift default)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapters' input."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Module names, or `all-linear`: every linear layer except the output head, and a mixture's experts and router (which is not
    possible with ZeRO stage 3 or dropout)."""
    quantization: Literal["nf4"] | None = None
    """Keep the base's linear layers in 4 bits while adapters are trained on top (QLoRA, Dettmers et al. 2023): about a quarter of
    the memory of bfloat16. Needs the package bitsandbytes (`pip install 'rlflow[qlora]'`), and ZeRO stage 0, 1 or 2."""


class OtherModelSpec(Spec):
    """A model beside the one that is trained: one of `path` and `from_run`. Precision is that of `model`."""

    path: str | None = None
    """Local directory or hub id."""
    from_run: str | None = None
    """Name of an earlier run in the same runs directory."""
    revision: str | None = None
    """Hub revision of `path`."""
    hub: Hub = "huggingface"
    """Where `path` lies if it is a hub id; `modelscope` needs the package modelscope (`pip install modelscope`)."""

    @model_validator(mode="after")
    def _at_most_one_origin(self) -> Self:
        if self.path is not None and self.from_run is not None:
            raise ValueError("set one of path and from_run")
        if self.revision is not None and self.path is None:
            raise ValueError("revision needs path")
        if self.hub != "huggingface" and self.path is None:
            raise ValueError("hub needs path")
        return self

    @property
    def is_given(self) -> bool:
        """Whether there is such a model."""
        return self.path is not None or self.from_run is not None


class ModelSpec(Spec):
    """The model a job trains: exactly one of `path`, `from_run`, `random`."""

    path: str | None = None
    """Local directory or hub id."""
    from_run: str | None = None
    """Name of an earlier run in the same runs directory: its final model, or its latest complete checkpoint."""
    random: RandomModelSpec | None = None
    """A model with random weights."""
    revision: str | None = None
    """Hub revision of `path`."""
    hub: Hub = "huggingface"
    """Where `path` lies if it is a hub id; `modelscope` needs the package modelscope (`pip install modelscope`)."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Data type of weights and activations, in the learner and in the sampler. The optimiser's copy is always float32."""
    experts_implementation: Literal["grouped_mm", "batched_mm", "eager"] = "grouped_mm"
    """How a mixture of experts computes in the learner: all experts in one grouped matrix product, or one after the other (eager,
    many times slower)."""
    lora: LoraSpec | None = None
    """Train adapters instead of all parameters."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if sum(origin is not None for origin in (self.path, self.from_run, self.random)) != 1:
            raise ValueError("set exactly one of path, from_run and random")
        if self.revision is not None and self.path is None:
            raise ValueError("revision needs path")
        if self.hub != "huggingface" and self.path is None:
            raise ValueError("hub needs path")
        return self

    def other(self, origin: OtherModelSpec, *, lora: LoraSpec | None = None) -> "ModelSpec":
        """A model from elsewhere with this one's settings."""
        where = origin.model_dump(include={"path", "from_run", "revision", "hub"})
        return self.model_copy(update={**where, "random": None, "lora": lora})

    @property
    def is_quantised(self) -> bool:
        """Whether its linear layers are quantised for training."""
        return self.lora is not None and self.lora.quantization is not None

    @property
    def label(self) -> str:
        """A short name for logs and job metadata."""
        if self.random is not None:
            return self.random.config if isinstance(self.random.config, str) else f"random {self.random.config.get('model_type')}"
        return self.path or f"run {self.from_run}"
