"""Expected memory of vLLM engines: those of the job's own model, and those of judges."""

from collections.abc import Mapping

from rlflow.jobs.model_facts import ModelFacts
from rlflow.jobs.rewards import judges
from rlflow.spec.jobs import InferJob, Job, RolloutJob
from rlflow.spec.rollout import EngineSpec

GIB = 2**30
_GPU_GIB = 4.5
"""An engine's context, CUDA graphs and activations."""
_CPU_GIB = 1.5
"""A process of an engine without weights and cache, on CPU."""


def rollout_gib(job: RolloutJob, facts: ModelFacts, *, device_gib: float, on_gpu: bool) -> float:
    """What the job's engines take on each of their GPUs, or all of them in the machine's memory."""
    if not on_gpu:
        return engines_on_cpu(job.rollout, facts, bytes_per_number(job))
    share = job.rollout.gpu_memory_utilization
    return engine_gib(job, facts) if share == "auto" else share * device_gib


def engine_gib(job: RolloutJob, facts: ModelFacts) -> float:
    """What an engine needs on each of its GPUs: weights, a KV cache for the sequences it decodes at once, and vLLM's own."""
    sequences = min(job.rollout.max_num_seqs, job.prompts_per_step * job.rollout.num_generations)
    return _on_gpu(job.rollout, facts, bytes_per_number(job), sequences * _longest(job))


def least_engine_gib(job: RolloutJob | InferJob, facts: ModelFacts) -> float:
    """The least that an engine needs on each of its GPUs: a cache for one sequence."""
    return _on_gpu(job.rollout, facts, bytes_per_number(job), _longest(job))


def engines_on_cpu(spec: EngineSpec, facts: ModelFacts, size: int) -> float:
    """All engines, with `size` bytes a number; one holds its weights twice while they are loaded and packed."""
    weights = facts.num_parameters * size / GIB
    t = spec.tensor_parallel_size
    processes = t + 1 if t > 1 else 1  # the actor, which computes nothing then
    return (2 * weights + spec.cpu_kv_cache_gib * t + _CPU_GIB * processes) * spec.num_workers


def judges_gib(job: Job, others: Mapping[str, ModelFacts], *, on_gpu: bool) -> float:
    """The largest judge on each of its GPUs, with a cache for one sequence; without GPUs all engines of judges. One whose facts
    are not known, or that vLLM is told to quantise or to keep in host memory, is not counted.
    """
    needed = [0.0]
    for field, (_, engine) in judges(job).items() if isinstance(job, RolloutJob | InferJob) else ():
        facts = others.get(field)
        if facts is None or facts.is_quantised or {"quantization", "cpu_offload_gb"} & engine.engine.keys():
            continue
        size = 4 if engine.dtype == "float32" else 2
        if on_gpu:
            needed.append(_on_gpu(engine, facts, size, engine.max_model_tokens))
        else:
            needed.append(engines_on_cpu(engine, facts, size))
    return max(needed) if on_gpu else sum(needed)


def _on_gpu(spec: EngineSpec, facts: ModelFacts, size: int, cached_tokens: int) -> float:
    cache = cached_tokens * 2 * facts.num_layers * facts.num_key_value_heads * facts.head_dim * size
    return (facts.num_parameters * size + cache) / spec.tensor_parallel_size / GIB + _GPU_GIB


def _longest(job: RolloutJob | InferJob) -> int:
    return job.data.max_prompt_tokens + job.rollout.max_completion_tokens


def bytes_per_number(job: Job) -> int:
    """Of the job's model."""
    return 2 if job.model.dtype == "bfloat16" else 4
