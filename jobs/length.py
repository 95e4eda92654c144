"""How many steps a job has."""

import math

from rlflow.spec.jobs import GrpoJob, SftJob


def rows_per_step(job: SftJob | GrpoJob) -> int:
    """Rows that a step takes from the data."""
    return job.batch_size if isinstance(job, SftJob) else job.prompts_per_step


def total_steps(job: SftJob | GrpoJob, num_rows: int) -> int:
    """`steps`, or as many as `epochs` passes over the rows need."""
    if job.steps is not None:
        return job.steps
    assert job.epochs is not None
    return max(1, math.ceil(job.epochs * num_rows / rows_per_step(job)))
