"""What there is to each kind of job: how it runs, and what it runs on."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from rlflow.cluster.devices import DevicePlan
from rlflow.jobs.context import JobContext
from rlflow.jobs.gkd import run_gkd_job
from rlflow.jobs.grpo import run_grpo_job
from rlflow.jobs.infer import infer_devices, run_infer_job
from rlflow.jobs.ppo import run_ppo_job
from rlflow.jobs.preference import run_preference_job
from rlflow.jobs.sampling import sampling_devices
from rlflow.jobs.sft import run_sft_job, sft_devices


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of job; both functions take a job of that kind."""

    run: Callable[[Any, JobContext], Awaitable[None]]
    devices: Callable[[Any, Literal["gpu", "cpu"]], DevicePlan]


KINDS = {
    "sft": Kind(run_sft_job, sft_devices),
    "grpo": Kind(run_grpo_job, sampling_devices),
    "gkd": Kind(run_gkd_job, sampling_devices),
    "ppo": Kind(run_ppo_job, sampling_devices),
    "dpo": Kind(run_preference_job, sft_devices),
    "kto": Kind(run_preference_job, sft_devices),
    "rm": Kind(run_preference_job, sft_devices),
    "infer": Kind(run_infer_job, infer_devices),
}
