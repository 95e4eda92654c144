"""What every job gets from the runner."""

from dataclasses import dataclass
from typing import Literal

from rlflow.data.rows import Rows
from rlflow.data.stream import RowStream
from rlflow.observe.journal import Journal
from rlflow.observe.run_dir import RunDirectory

JobRows = tuple[Rows | RowStream, ...]
"""Those to train on, and the held-out ones; of batch inference those to answer."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is to run on."""

    device: Literal["gpu", "cpu"]
    num_cpus: int
    """CPUs that workers on a machine without GPU share."""
    num_gpus: int

    def threads(self, workers: int) -> int | None:
        """CPU threads of each of `workers` that compute at the same time; None on GPUs: torch's default."""
        return max(1, self.num_cpus // workers) if self.device == "cpu" else None


@dataclass(frozen=True, slots=True)
class JobContext:
    """A started run."""

    run: RunDirectory
    rows: JobRows
    journal: Journal
    machine: Machine
    working_dir: str
    """Where relative plugin paths start."""
