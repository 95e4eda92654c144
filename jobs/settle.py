"""What a spec leaves to `auto` and the plan decides."""

import math
from collections.abc import Mapping
from itertools import product

from rlflow.jobs.engine_memory import engine_gib, least_engine_gib
from rlflow.jobs.memory import NO_OTHERS, estimate_memory, rewards_gib
from rlflow.jobs.model_facts import ModelFacts
from rlflow.spec.jobs import InferJob, Job, RolloutJob, TrainingJob

_RESIDENCIES = ("together", "turns")
_CHECKPOINTING = ("none", "selective", "full")
_LARGEST_SHARE = 0.85
"""Of a device, for an engine and what stays beside it."""
_MARGIN = 0.9
"""Share of a device that a choice may fill by the estimate."""


def settle(
    job: Job, facts: ModelFacts | None, others: Mapping[str, ModelFacts] = NO_OTHERS, *, on_gpu: bool, device_gib: float
) -> Job:
    """A job with residency, engine memory, ZeRO stage and checkpointing decided: the fastest that fit, or else the frugal.

    Keeping engines and learner on the device comes first, then activations, then parameters and gradients whole. An unknown model
    gets the most frugal. `others`: of `estimate_memory`.
    """
    if isinstance(job, InferJob):
        return _beside_rewards(job, facts, others, device_gib) if on_gpu and facts is not None else job
    if not isinstance(job, TrainingJob):
        return job
    choices = [
        _with(job, *choice) for choice in product(_residencies(job, on_gpu=on_gpu), _checkpointing(job), _zero_stages(job))
    ]
    if facts is None:
        return choices[-1]
    if on_gpu:
        choices = [_with_engine_memory(choice, facts, others, device_gib) for choice in choices]
    for choice in choices:
        if estimate_memory(choice, facts, others, on_gpu=on_gpu, device_gib=device_gib).peak <= _MARGIN * device_gib:
            return choice
    return choices[-1]


def _residencies(job: TrainingJob, *, on_gpu: bool) -> tuple[str, ...]:
    if not isinstance(job, RolloutJob):
        return ("",)
    if not on_gpu:
        return ("together",)
    if job.residency != "auto":
        return (job.residency,)
    return _RESIDENCIES if job.num_learners == 1 else ("turns",)


def _checkpointing(job: TrainingJob) -> tuple[str, ...]:
    mode = job.learner.gradient_checkpointing
    return _CHECKPOINTING if mode == "auto" else (mode,)


def _zero_stages(job: TrainingJob) -> tuple[int, ...]:
    stage = job.learner.zero_stage
    if stage != "auto":
        return (stage,)
    if job.learner.num_ranks == 1:
        return (1,)
    return (1, 2) if job.model.is_quantised else (1, 2, 3)


def _with(job: TrainingJob, residency: str, checkpointing: str, zero_stage: int) -> TrainingJob:
    learner = job.learner.model_copy(update={"zero_stage": zero_stage, "gradient_checkpointing": checkpointing})
    settled = job.model_copy(update={"learner": learner})
    return settled.model_copy(update={"residency": residency}) if residency else settled


def _with_engine_memory(job: TrainingJob, facts: ModelFacts, others: Mapping[str, ModelFacts], device_gib: float) -> TrainingJob:
    if not isinstance(job, RolloutJob) or job.rollout.gpu_memory_utilization != "auto" or device_gib == math.inf:
        return job
    largest = _LARGEST_SHARE - rewards_gib(job, facts, others, on_gpu=True) / device_gib
    share = max(min(engine_gib(job, facts) / device_gib, largest), least_engine_gib(job, facts) / device_gib)
    return job.model_copy(update={"rollout": job.rollout.model_copy(update={"gpu_memory_utilization": round(share, 3)})})


def _beside_rewards(job: InferJob, facts: ModelFacts, others: Mapping[str, ModelFacts], device_gib: float) -> InferJob:
    """An engine without a learner takes what reward models leave."""
    gib = rewards_gib(job, facts, others, on_gpu=True)
    if not gib or job.rollout.gpu_memory_utilization != "auto" or device_gib == math.inf:
        return job
    share = max(_LARGEST_SHARE - gib / device_gib, least_engine_gib(job, facts) / device_gib)
    return job.model_copy(update={"rollout": job.rollout.model_copy(update={"gpu_memory_utilization": round(share, 3)})})
