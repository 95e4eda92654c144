"""Expected memory: a pure function of the spec, the model's size and the devices."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from rlflow.jobs.engine_memory import GIB, bytes_per_number, engines_on_cpu, judges_gib, least_engine_gib, rollout_gib
from rlflow.jobs.model_facts import ModelFacts
from rlflow.spec.jobs import GkdJob, InferJob, Job, PpoJob, RolloutJob, TrainingJob
from rlflow.spec.rewards import ModelRewardSpec

_CONTEXT_GIB = 0.8
"""CUDA context, NCCL and kernels of one process."""
_ASLEEP_GIB = 1.4
"""What a sleeping engine keeps on its GPU: context, CUDA graphs."""
_LEARNER_CPU_GIB = 1.2
"""A learner process without model."""
LOGITS_BYTES = 3 * 2**28
"""The logits that the fused log-probabilities hold at once (said again here, where torch is not loaded)."""
_REDUCE_BUCKET_ELEMENTS = 5 * 10**8
"""DeepSpeed's default bucket of gradients."""
_LORA_FRACTION = 0.01
_QUANTISED_BYTES = 4.5 / 8
"""Of a parameter in 4 bits, with the scale of its block."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """GiB on one device (or, without GPUs, in the machine's memory for all processes), and in host memory beside it."""

    learner_states: float
    """Weights, gradients, master weights and moments of one rank; without GPUs of all ranks."""
    learner_peak: float
    """States, activations, logits and gathered layers of one rank while it trains; without GPUs of all ranks."""
    rollout: float
    """Weights and KV cache of one engine while it samples; without GPUs of all engines."""
    rewards: float
    """Reward models, which stay beside whatever has its turn."""
    judges: float
    """A judge's engine on each of its own GPUs, which are others; without GPUs all such engines."""
    teacher: float
    """A rank of a teacher with GPUs of its own; without GPUs all such ranks."""
    peak: float
    """The larger of the two turns, or both together, and what stays; without GPUs judges and such a teacher too."""
    host: float
    """Page-locked copies of offloaded states, of one rank."""


NO_OTHERS: Mapping[str, ModelFacts] = {}


def estimate_memory(
    job: Job, facts: ModelFacts, others: Mapping[str, ModelFacts] = NO_OTHERS, *, on_gpu: bool, device_gib: float
) -> MemoryEstimate:
    """Estimate for one device. What is still `auto` counts as the most frugal choice. `others`: facts of a critic, a teacher or a
    reward model, by field; one that is not known counts as large as the model.
    """
    rewards = rewards_gib(job, facts, others, on_gpu=on_gpu)
    judges = judges_gib(job, others, on_gpu=on_gpu)
    teacher = _teacher_alone(job, others.get("teacher", facts), on_gpu=on_gpu)
    estimate = partial(MemoryEstimate, rewards=rewards, judges=judges, teacher=teacher)
    beside = rewards if on_gpu else rewards + judges + teacher
    if isinstance(job, InferJob):
        rollout = least_engine_gib(job, facts) if on_gpu else engines_on_cpu(job.rollout, facts, bytes_per_number(job))
        return estimate(learner_states=0.0, learner_peak=0.0, rollout=rollout, peak=rollout + beside, host=0.0)
    assert isinstance(job, TrainingJob)
    roles = _roles(job, facts, others)
    rollout = rollout_gib(job, facts, device_gib=device_gib, on_gpu=on_gpu) if isinstance(job, RolloutJob) else 0.0
    together = not on_gpu or not isinstance(job, RolloutJob) or job.residency == "together"
    of_roles = sum if together else max
    process, ranks = (_CONTEXT_GIB, 1) if on_gpu else (_LEARNER_CPU_GIB, job.learner.num_ranks)
    learner_states = of_roles(role.states for role in roles) * ranks
    learner_peak = (of_roles(role.peak for role in roles) + process) * ranks
    estimate = partial(estimate, learner_states=learner_states, learner_peak=learner_peak, rollout=rollout)
    if together:
        return estimate(peak=learner_peak + rollout + beside, host=0.0)
    turns = max(learner_peak + _ASLEEP_GIB, rollout + _CONTEXT_GIB) + beside
    return estimate(peak=turns, host=sum(role.host for role in roles))


@dataclass(frozen=True, slots=True)
class _Role:
    """GiB of one model of a learner rank."""

    states: float
    peak: float
    host: float


def _roles(job: TrainingJob, facts: ModelFacts, others: Mapping[str, ModelFacts]) -> list[_Role]:
    roles = [_trained(job, facts)]
    if isinstance(job, PpoJob):
        roles.append(_trained(job, others.get("critic", facts)))
    if isinstance(job, GkdJob) and job.teacher.num_ranks is None:
        roles.append(_frozen(job, others.get("teacher", facts), job.learner.num_ranks, _zero_stage(job)))
    return roles


def _teacher_alone(job: Job, facts: ModelFacts, *, on_gpu: bool) -> float:
    if not isinstance(job, GkdJob) or job.teacher.num_ranks is None:
        return 0.0
    ranks = job.teacher.num_ranks
    rank = _frozen(job, facts, ranks, 3 if ranks > 1 else 1).peak
    return rank + _CONTEXT_GIB if on_gpu else (rank + _LEARNER_CPU_GIB) * ranks


def _trained(job: TrainingJob, facts: ModelFacts) -> _Role:
    states, host = _learner_states(job, facts)
    return _Role(states, states + _activations(job, facts) + _gathered(job, facts) + _logits(job, facts), host)


def _frozen(job: TrainingJob, facts: ModelFacts, ranks: int, stage: int) -> _Role:
    weights = facts.num_parameters * bytes_per_number(job) / (ranks if stage == 3 else 1) / GIB
    forward = _forward_numbers(facts, job.learner.micro_batch_tokens) * bytes_per_number(job) / GIB
    return _Role(weights, weights + forward + _gathered(job, facts) + LOGITS_BYTES / GIB, weights)


def rewards_gib(job: Job, facts: ModelFacts, others: Mapping[str, ModelFacts], *, on_gpu: bool) -> float:
    """Reward models and the activations of a batch, which stay on a device (or in the machine's memory, of all workers)."""
    if not isinstance(job, RolloutJob | InferJob):
        return 0.0
    models = {f"rewards[{i}]": reward for i, reward in enumerate(job.rewards) if isinstance(reward, ModelRewardSpec)}
    placed = {field: reward for field, reward in models.items() if not on_gpu or reward.device == "auto"}
    gib = sum(_reward_model_gib(job, reward, others.get(field, facts), on_gpu=on_gpu) for field, reward in placed.items())
    workers = job.reward_pool.num_workers
    return gib * (math.ceil(workers / _num_devices(job)) if on_gpu else workers)


def _reward_model_gib(job: RolloutJob | InferJob, reward: ModelRewardSpec, facts: ModelFacts, *, on_gpu: bool) -> float:
    size = 2 if reward.dtype == "bfloat16" or (reward.dtype == "auto" and on_gpu) else 4
    completion = job.longest_completion if isinstance(job, RolloutJob) else job.rollout.max_completion_tokens
    tokens = reward.batch_size * min(reward.max_tokens, job.data.max_prompt_tokens + completion)
    return (facts.num_parameters + _forward_numbers(facts, tokens)) * size / GIB + (_CONTEXT_GIB if on_gpu else 0.0)


def _num_devices(job: RolloutJob | InferJob) -> int:
    engines = job.rollout.num_workers * job.rollout.tensor_parallel_size
    return max(engines, job.learner.num_ranks) if isinstance(job, RolloutJob) else engines


def _zero_stage(job: TrainingJob) -> int:
    return 3 if job.learner.zero_stage == "auto" else job.learner.zero_stage


def _learner_states(job: TrainingJob, facts: ModelFacts) -> tuple[float, float]:
    """(on the device, in host memory when offloaded) of one rank, in GiB."""
    size, ranks, stage = bytes_per_number(job), job.learner.num_ranks, _zero_stage(job)
    fraction = _LORA_FRACTION if job.model.lora else 1.0
    trained = facts.num_parameters * fraction
    weights = facts.num_parameters / ranks * size if stage == 3 else _whole_weights(job, facts)
    gradients = trained / ranks * 4 if stage >= 2 else _unpartitioned(job, facts) * fraction * 4
    gradients += min(_REDUCE_BUCKET_ELEMENTS, trained) * size if stage >= 2 else 0
    master = 0 if size == 4 and stage == 0 else 4
    optimizer = trained * (master + 8) / (ranks if stage >= 1 else 1)
    on_device = weights + gradients + (0 if job.learner.offload_optimizer else optimizer)
    return on_device / GIB, (optimizer + weights) / GIB


def _whole_weights(job: TrainingJob, facts: ModelFacts) -> float:
    """Bytes of a rank's weights that are not partitioned; embeddings and the output head are never quantised."""
    if job.model.is_quantised:
        return facts.embedding_parameters * bytes_per_number(job) + _linear_parameters(facts) * _QUANTISED_BYTES
    return _unpartitioned(job, facts) * bytes_per_number(job)


def _linear_parameters(facts: ModelFacts) -> int:
    return facts.num_parameters - facts.embedding_parameters


def _unpartitioned(job: TrainingJob, facts: ModelFacts) -> float:
    """Parameters that a rank has whole: all, less the experts that are spread over other ranks."""
    return facts.num_parameters - facts.expert_parameters * (1 - 1 / job.learner.expert_parallel)


def _micro_batch_tokens(job: TrainingJob) -> float:
    """Tokens that go through one rank at once."""
    return job.learner.micro_batch_tokens / job.learner.sequence_parallel


def _activations(job: TrainingJob, facts: ModelFacts) -> float:
    """Of one micro-batch: what all layers keep for the backward pass, and what one layer needs while it is computed."""
    hidden, feed_forward = facts.hidden_size, facts.intermediate_size
    queries, keys = facts.num_attention_heads * facts.head_dim, facts.num_key_value_heads * facts.head_dim
    # With fused kernels; plain norms, rotary embeddings and activations keep about 1.6 times as much.
    everything = _layer_width(facts)
    products = 3 * hidden + 2 * queries + 2 * keys + 2 * feed_forward
    kept = {"none": everything, "selective": products}.get(job.learner.gradient_checkpointing, hidden)
    backward = everything + 3 * feed_forward + 4 * hidden
    fused = 1.6 if job.learner.liger_kernel is False else 1.0
    return _micro_batch_tokens(job) * (kept * facts.num_layers + backward) * fused * bytes_per_number(job) / GIB


def _layer_width(facts: ModelFacts) -> int:
    """Numbers that a layer makes of one token."""
    queries, keys = facts.num_attention_heads * facts.head_dim, facts.num_key_value_heads * facts.head_dim
    return 4 * facts.hidden_size + 3 * queries + 3 * keys + 3 * facts.intermediate_size


def _forward_numbers(facts: ModelFacts, tokens: int) -> int:
    """Numbers that exist at once in a forward pass that nothing follows: those of one layer."""
    return tokens * _layer_width(facts)


def _gathered(job: TrainingJob, facts: ModelFacts) -> float:
    """Parameters that ZeRO-3 holds whole at once, the embeddings and two layers; or the matrix that is dequantised."""
    if job.model.is_quantised:
        return facts.hidden_size * facts.intermediate_size * bytes_per_number(job) / GIB
    if _zero_stage(job) < 3 or job.learner.num_ranks == 1:
        return 0.0
    layer = (_unpartitioned(job, facts) - facts.embedding_parameters) / facts.num_layers
    return (facts.embedding_parameters + 2 * layer) * bytes_per_number(job) / GIB


def _logits(job: TrainingJob, facts: ModelFacts) -> float:
    """A chunk of logits, and the head's gradient in float32 and in the model's precision."""
    logits = min(LOGITS_BYTES, facts.vocab_size * _micro_batch_tokens(job) * bytes_per_number(job))
    return (logits + facts.vocab_size * facts.hidden_size * (4 + bytes_per_number(job))) / GIB
