"""How many steps a job has."""

import math

from rlflow.spec.jobs import TrainingJob


def total_steps(job: TrainingJob, num_rows: int) -> int:
    """`steps`, or as many as `epochs` passes over the rows need."""
    if job.steps is not None:
        return job.steps
    assert job.epochs is not None
    return max(1, math.ceil(job.epochs * num_rows / job.rows_per_step))
