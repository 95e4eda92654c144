"""A rank's part of a checkpoint: weights, optimiser, random state and the reference, partitioned by ranks and ZeRO stage."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from rlflow.errors import LearnerError
from rlflow.learner.reference import SwappedReference

_LAYOUT_FILE = "layout.json"
"""Beside DeepSpeed's files: what they are partitioned by."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What the state is partitioned by."""

    num_ranks: int
    zero_stage: int
    expert_parallel: int = 1

    def __str__(self) -> str:
        spread = f" and experts spread over {self.expert_parallel}" if self.expert_parallel > 1 else ""
        return f"{self.num_ranks} learner ranks at ZeRO stage {self.zero_stage}{spread}"


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """Writes and reads the state of an engine and its reference; both are collective."""

    engine: Any
    reference: Any
    layout: Layout
    rank: int
    keeps_frozen: bool = True
    """Whether parameters that are not trained are part of the state; if not, they are those of the model at the start."""

    def save(self, directory: Path, client_state: dict[str, Any]) -> None:
        """Write this rank's part of the training state."""
        own = {"torch_rng": torch.get_rng_state(), "cuda_rng": _cuda_rng(), "client_state_names": list(client_state)}
        state = {**client_state, **own}
        self.engine.save_checkpoint(
            str(directory), tag="learner", client_state=state, exclude_frozen_parameters=not self.keeps_frozen
        )
        if isinstance(self.reference, SwappedReference):
            self.reference.save(directory / self._reference_file)
        if self.rank == 0:
            (directory / _LAYOUT_FILE).write_text(json.dumps(asdict(self.layout)))

    def load(self, directory: Path) -> dict[str, Any]:
        """Restore what `save` wrote, and return its client state. Raises `LearnerError` if it has another layout."""
        saved = Layout(**json.loads((directory / _LAYOUT_FILE).read_text()))
        if saved != self.layout:
            raise LearnerError(
                f"{directory} was saved with {saved}, but this run has {self.layout}: "
                "set learner.num_ranks, learner.zero_stage and learner.expert_parallel as they were"
            )
        loaded, state = self.engine.load_checkpoint(str(directory), tag="learner", load_module_strict=self.keeps_frozen)
        if loaded is None:
            raise LearnerError(f"{directory}: no learner state could be read")
        if isinstance(self.reference, SwappedReference):
            self.reference.load(directory / self._reference_file)
        torch.set_rng_state(state["torch_rng"])
        if (cuda_rng := state.get("cuda_rng")) is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(cuda_rng)
        return {name: state[name] for name in state["client_state_names"]}

    @property
    def _reference_file(self) -> str:
        return f"reference-{self.rank}.pt"


def _cuda_rng() -> torch.Tensor | None:
    """The state of the device's generator, which draws the dropout."""
    return torch.cuda.get_rng_state() if torch.cuda.is_available() else None
