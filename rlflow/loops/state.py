"""Where a loop stands: what a checkpoint must hold beside the learner's state."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(slots=True)
class LoopState:
    """Position of a run at a step boundary."""

    step: int = 0
    """Steps done."""
    cursor: int = 0
    """Rows taken from the data's order."""
    weight_version: int = 0
    """Last version of the weights sent to the samplers."""
    best_evaluation: float | None = None
    """Best figure of `run.early_stopping`."""
    evaluations_since_best: int = 0
    """Evaluations since then."""

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "LoopState":
        """From a checkpoint, which may hold more."""
        return cls(**{name: fields[name] for name in cls.__slots__})
