"""Which changes of a spec make a job need less memory."""

from collections.abc import Iterator, Mapping
from typing import Any

from rlflow.jobs.memory import estimate_memory
from rlflow.jobs.model_facts import ModelFacts
from rlflow.jobs.settle import settle
from rlflow.spec.jobs import GkdJob, InferJob, Job, RolloutJob, TrainingJob
from rlflow.spec.model import LoraSpec

_NOTICEABLE = 0.99
"""A change that leaves more than this share of the peak is not worth naming."""


def remedies(
    job: Job, peak_gib: float, facts: ModelFacts, others: Mapping[str, ModelFacts], *, on_gpu: bool, device_gib: float
) -> list[str]:
    """Changes that lower a job's peak by the estimate, each alone. More ranks divide a model's states over more GPUs; on a
    machine without GPUs all ranks share its memory, and each adds activations.

    `job`: not settled yet. `peak_gib`: its estimate. `others`: of `estimate_memory`.
    """

    def peak(changed: Job) -> float:
        settled = settle(changed, facts, others, on_gpu=on_gpu, device_gib=device_gib)
        return estimate_memory(settled, facts, others, on_gpu=on_gpu, device_gib=device_gib).peak

    return [name for name, changed in _changed(job) if peak(changed) < _NOTICEABLE * peak_gib]


def _changed(job: Job) -> Iterator[tuple[str, Job]]:
    """What may help, in words, and the job with it."""
    if isinstance(job, TrainingJob):
        learner = job.learner
        fewest = max(learner.expert_parallel, learner.sequence_parallel)
        yield "learner.num_ranks (more, on as many GPUs)", _with(job, "learner", num_ranks=2 * learner.num_ranks)
        yield "learner.num_ranks (fewer)", _with(job, "learner", num_ranks=fewest)
        yield "learner.micro_batch_tokens (fewer)", _with(job, "learner", micro_batch_tokens=learner.micro_batch_tokens // 2)
        yield "learner.zero_stage (auto)", _with(job, "learner", zero_stage="auto")
        yield "learner.gradient_checkpointing (full)", _with(job, "learner", gradient_checkpointing="full")
        yield "model.lora", _with(job, "model", lora=job.model.lora or LoraSpec())
    if isinstance(job, RolloutJob | InferJob):
        engines = job.rollout
        yield "rollout.tensor_parallel_size (more)", _with(job, "rollout", tensor_parallel_size=2 * engines.tensor_parallel_size)
        yield "rollout.tensor_parallel_size (1)", _with(job, "rollout", tensor_parallel_size=1)
        yield "rollout.num_workers (fewer)", _with(job, "rollout", num_workers=1)
        yield "rollout.cpu_kv_cache_gib (less)", _with(job, "rollout", cpu_kv_cache_gib=1)
        yield "reward_pool.num_workers (fewer)", _with(job, "reward_pool", num_workers=1)
    if isinstance(job, RolloutJob):
        yield "residency (turns)", job.model_copy(update={"residency": "turns"})
    if isinstance(job, GkdJob) and job.teacher.num_ranks is not None:
        yield "teacher.num_ranks (fewer)", _with(job, "teacher", num_ranks=1)
    yield "model.dtype (bfloat16)", _with(job, "model", dtype="bfloat16")


def _with(job: Job, part: str, **values: Any) -> Job:
    return job.model_copy(update={part: getattr(job, part).model_copy(update=values)})
