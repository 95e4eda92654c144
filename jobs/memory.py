"""Expected memory: a pure function of the spec, the model's size and the devices."""

from dataclasses import dataclass

from rlflow.jobs.model_facts import ModelFacts
from rlflow.spec.jobs import GrpoJob, SftJob

GIB = 2**30
_CONTEXT_GIB = 0.7
"""CUDA context, NCCL and kernels of one process."""
_ENGINE_CPU_GIB = 1.5
"""A vLLM engine's processes without weights and cache, on CPU."""
_LEARNER_CPU_GIB = 1.2
"""A learner process without model."""
_LOGITS_GIB = 1.5
"""The fused log-probability: one chunk of logits in two precisions, and the head's gradient."""
_LORA_FRACTION = 0.01


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """GiB on one device (or, without GPUs, in the machine's memory for all processes), and in host memory beside it."""

    learner_states: float
    """Weights, gradients, master weights and moments of one rank."""
    learner_peak: float
    """States, activations, logits and gathered layers of one rank while it trains."""
    rollout: float
    """Weights and KV cache of one engine while it samples."""
    peak: float
    """The larger of the two turns."""
    host: float
    """Pinned copies of offloaded states, of all ranks on one device's share."""


def estimate_memory(job: SftJob | GrpoJob, facts: ModelFacts, *, on_gpu: bool, device_gib: float) -> MemoryEstimate:
    """Estimate for one device."""
    states, host = _learner_states(job, facts)
    peak = states + _activations(job, facts) + _gathered(job, facts) + _logits(facts)
    rollout = _rollout(job, facts, device_gib=device_gib, on_gpu=on_gpu) if isinstance(job, GrpoJob) else 0.0
    if on_gpu:
        learner_peak = peak + _CONTEXT_GIB
        takes_turns = job.learner.zero_stage == 3 and not job.learner.offload_optimizer
        both = max(learner_peak, rollout + _CONTEXT_GIB) if takes_turns else learner_peak + rollout + _CONTEXT_GIB
        return MemoryEstimate(states, learner_peak, rollout, both, host if isinstance(job, GrpoJob) else 0.0)
    learner_peak = (peak + _LEARNER_CPU_GIB) * job.learner.num_ranks
    return MemoryEstimate(states, learner_peak, rollout, learner_peak + rollout, 0.0)


def _learner_states(job: SftJob | GrpoJob, facts: ModelFacts) -> tuple[float, float]:
    """(on the device, in host memory when offloaded) of one rank, in GiB."""
    size, ranks, stage = (2 if job.model.dtype == "bfloat16" else 4), job.learner.num_ranks, job.learner.zero_stage
    trained = facts.num_parameters * (_LORA_FRACTION if job.model.lora else 1.0)
    weights = facts.num_parameters * size / (ranks if stage == 3 else 1)
    gradients = trained * 4 / (ranks if stage >= 2 else 1)
    master = 0 if size == 4 and stage == 0 else 4
    optimizer = trained * (master + 8) / (ranks if stage >= 1 else 1)
    on_device = weights + gradients + (0 if job.learner.offload_optimizer else optimizer)
    return on_device / GIB, (optimizer + weights) / GIB


def _activations(job: SftJob | GrpoJob, facts: ModelFacts) -> float:
    """Of one micro-batch: the layers' inputs, and one layer's inside (all layers' without checkpointing)."""
    tokens, size = job.learner.micro_batch_tokens, 2 if job.model.dtype == "bfloat16" else 4
    inside = tokens * (facts.hidden_size * 12 + facts.num_attention_heads * facts.head_dim * 4) * size
    inside += tokens * 6 * _intermediate(facts) * size
    kept = tokens * facts.hidden_size * size * facts.num_layers
    layers = 1 if job.learner.gradient_checkpointing else facts.num_layers
    return (kept + inside * layers) / GIB


def _intermediate(facts: ModelFacts) -> float:
    """Width of the feed-forward part, from the parameter count (exact for dense models)."""
    attention = facts.hidden_size * facts.head_dim * (2 * facts.num_attention_heads + 2 * facts.num_key_value_heads)
    per_layer = (facts.num_parameters - facts.embedding_parameters) / facts.num_layers
    return min(8 * facts.hidden_size, max(0.0, per_layer - attention) / (3 * facts.hidden_size))


def _gathered(job: SftJob | GrpoJob, facts: ModelFacts) -> float:
    """Parameters that ZeRO-3 holds whole at once: the embeddings and two layers."""
    if job.learner.zero_stage < 3 or job.learner.num_ranks == 1:
        return 0.0
    size = 2 if job.model.dtype == "bfloat16" else 4
    layer = (facts.num_parameters - facts.embedding_parameters) / facts.num_layers
    return (facts.embedding_parameters + 2 * layer) * size / GIB


def _logits(facts: ModelFacts) -> float:
    return min(_LOGITS_GIB, facts.vocab_size * (4096 * 6 + facts.hidden_size * 4) / GIB)


def _rollout(job: GrpoJob, facts: ModelFacts, *, device_gib: float, on_gpu: bool) -> float:
    if on_gpu:
        return job.rollout.gpu_memory_utilization * device_gib
    weights = facts.num_parameters * (2 if job.model.dtype == "bfloat16" else 4) / GIB
    return (2 * weights + job.rollout.cpu_kv_cache_gib + _ENGINE_CPU_GIB) * job.rollout.num_workers
