"""A GRPO job."""

from rlflow.jobs.context import JobContext
from rlflow.jobs.sampling import Parts, run_sampling_job
from rlflow.loops.grpo import GrpoLoop
from rlflow.spec.jobs import GrpoJob


async def run_grpo_job(job: GrpoJob, context: JobContext) -> None:
    """Train to the end, or from the latest checkpoint to the end."""
    parts = Parts(GrpoLoop, keep_reference=job.grpo.kl_coefficient > 0)
    await run_sampling_job(job, context, lambda _: parts)
