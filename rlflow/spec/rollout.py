"""How completions are sampled."""

from typing import Annotated, Any, Literal

from pydantic import Field

from rlflow.spec.base import Spec


class EngineSpec(Spec):
    """The vLLM engines."""

    num_workers: int = Field(default=1, ge=1)
    """Engines, each with its own copy of the weights."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """Devices an engine is spread over: GPUs of one node, or without GPUs processes of the machine."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = "auto"
    """Fraction of a GPU's memory for an engine while it samples; auto: what its weights and a KV cache for all sequences of a
    step that it decodes at once need by the plan's estimate; without a learner beside it 0.9."""
    max_num_seqs: int = Field(default=256, ge=1)
    """Most sequences an engine decodes at once."""
    enforce_eager: bool = False
    """Do not capture CUDA graphs: faster start, slower sampling. On CPU the engine is always eager."""
    cpu_kv_cache_gib: int = Field(default=1, ge=1)
    """KV cache of an engine's process on a machine without GPU, in GiB."""
    startup_timeout_s: float = Field(default=900.0, gt=0)
    """Limit for starting an engine, in seconds."""
    generate_timeout_s: float = Field(default=3600.0, gt=0)
    """Limit for one group, in seconds."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """Further vLLM engine arguments, passed through."""


class RolloutSpec(EngineSpec):
    """The vLLM rollout workers and their sampling settings."""

    num_generations: int = Field(default=8, ge=1)
    """Completions a prompt: the size of a group."""
    max_completion_tokens: int = Field(default=512, ge=1)
    """Longest completion, in tokens; a longer one is cut and has finish reason `length`."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature; the learner's logits are divided by it too."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling. Below 1 the sampler's log-probabilities are renormalised, so ratios use the learner's own."""
    top_k: int = Field(default=0, ge=0)
    """Sample among the k likeliest tokens; 0: all."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion, beside the model's end-of-turn token."""
    sampler_logprobs: Literal["auto", "all", "sample", "none"] = "auto"
    """Groups with the sampler's log-probabilities: all, one in eight (`sample`) or none; auto: all if the loss needs them."""

    @property
    def samples_model_distribution(self) -> bool:
        """Whether completions come from the model's full distribution (at the temperature)."""
        return self.top_p == 1.0 and self.top_k == 0


class GenerationSpec(EngineSpec):
    """Engines that answer prompts with a finished model. What is not set is as the model's `generation_config.json` says."""

    max_completion_tokens: int = Field(default=2048, ge=1)
    """Longest answer, in tokens; a longer one is cut and has finish reason `length`."""
    temperature: float | None = Field(default=None, ge=0)
    """Sampling temperature; 0: greedy. The model's own if not set, else 1."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Nucleus sampling. The model's own if not set, else 1."""
    top_k: int | None = Field(default=None, ge=0)
    """Sample among the k likeliest tokens; 0: all. The model's own if not set, else 0."""
    repetition_penalty: float | None = Field(default=None, gt=0)
    """Above 1, tokens that occurred already become less likely. The model's own if not set, else 1."""
    stop: tuple[str, ...] = ()
    """Strings that end an answer, beside the model's end-of-turn token."""
