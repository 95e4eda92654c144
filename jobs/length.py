"""How many steps a job has."""

import math

from rlflow.spec.jobs import TrainingJob


def total_steps(job: TrainingJob, num_rows: int | None) -> int:
    """`steps`, or as many as `epochs` passes over the rows need. `num_rows`: None if nobody has counted them."""
    if job.steps is not None:
        return job.steps
    assert job.epochs is not None and num_rows is not None
    return max(1, math.ceil(job.epochs * num_rows / job.rows_per_step))
