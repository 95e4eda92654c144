"""What batch inference writes."""

from typing import Literal

from pydantic import Field

from rlflow.spec.base import Spec


class InferSpec(Spec):
    """Answers to the rows of a data set, as JSON lines that can be trained on."""

    output: str | None = None
    """File of answers (.jsonl), relative to the working directory; `output.jsonl` in the run's folder if not set. Rows without an
    answer, and why, go to the file beside it that ends in `.errors.jsonl`."""
    num_samples: int = Field(default=1, ge=1)
    """Answers a row."""
    keep: Literal["all", "best"] = "all"
    """Write every answer, or of each row the one with the highest reward (rejection sampling)."""
    min_reward: float | None = None
    """Write only answers whose reward is at least this."""
    drop_truncated: bool = False
    """Do not write answers that reached `rollout.max_completion_tokens`."""
    drop_unbalanced_thinking: bool = False
    """Do not write answers in which `<think>` and `</think>` do not close each other."""
    response_prefix: str = ""
    """Begins every answer: the model continues it, and it is written with what the model adds."""
