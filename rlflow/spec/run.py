"""Where a run writes, how often, and what makes it repeatable."""

from typing import Literal

from pydantic import Field

from rlflow.spec.base import Spec


class KeepBestSpec(Spec):
    """A checkpoint is written whenever an evaluation is the best so far, and the best one stays."""

    metric: str = Field(pattern=r"^eval_[a-z0-9_]+$")
    """Name of a figure of the evaluation, as in `metrics.jsonl`: `eval_accuracy`, say."""
    mode: Literal["max", "min"] = "max"
    """Whether more is better, or less."""


class EarlyStoppingSpec(Spec):
    """Ends a run, as succeeded, when its evaluations no longer get better. `model` is then the last one; see `keep_best`."""

    metric: str = Field(pattern=r"^eval_[a-z0-9_]+$")
    """Name of a figure of the evaluation, as in `metrics.jsonl`: `eval_loss`, say."""
    mode: Literal["max", "min"]
    """Whether more is better, or less."""
    patience: int = Field(default=3, ge=1)
    """Evaluations in a row without a new best after which the run ends."""
    min_delta: float = Field(default=0.0, ge=0)
    """By more than this an evaluation must be better than the best one to count."""


class RunSpec(Spec):
    """A run: its name, directory and bookkeeping."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name of the run and of its folder."""
    dir: str = "runs"
    """Folder of all runs. Inside a Ray job it must be absolute and visible to every node."""
    seed: int = 0
    """Seed of sampling and of whatever is random in training. Rows have `data.seed`, random models `model.random.seed`."""
    deterministic: bool = False
    """Assign prompts statically and seed every request, so that a run can be repeated exactly."""
    device: Literal["auto", "gpu", "cpu"] = "auto"
    """Run on GPUs or on the processor; auto: on GPUs if the cluster has any."""
    save_every: int = Field(default=100, ge=1)
    """Steps between checkpoints; the last step is always saved."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Complete checkpoints to keep; the best one, if `keep_best` is set, is kept beside them."""
    keep_best: KeepBestSpec | None = None
    """By which figure of the evaluation the best checkpoint is told, and kept; if not set, only the newest are."""
    keep_only_models: bool = False
    """Remove the training state (optimiser, several times the model) of checkpoints that are not the newest, and of the last one
    once the run has ended. A run that was cut off still goes on from its newest checkpoint."""
    early_stopping: EarlyStoppingSpec | None = None
    """End the run when evaluations (`evaluate.every`) no longer get better."""
    log_completions_every: int = Field(default=10, ge=0)
    """Steps between files of completions; 0: none."""
    max_restarts: int = Field(default=3, ge=0)
    """How often in a run dead workers are replaced before the job fails."""


class EvaluateSpec(Spec):
    """Evaluation on the held-out rows: by reward of sampled completions where the job has rollout workers, else by loss."""

    every: int = Field(default=0, ge=0)
    """Steps between evaluations; 0: only before the first and after the last step."""
    max_rows: int | None = Field(default=None, ge=1)
    """At most this many held-out rows; all if not set."""
    temperature: float | None = Field(default=None, ge=0)
    """Sampling temperature; that of training if not set; 0: greedy."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Nucleus sampling; that of training if not set."""
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """Longest completion, in tokens; that of training if not set."""
    num_samples: int = Field(default=1, ge=1)
    """Completions a row. `eval_<reward>` is the mean over all (mean@k); above 1, `eval_<reward>_pass_at_<k>` is the share of rows
    of which at least one completion has that reward at 1 or more."""
