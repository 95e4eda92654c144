"""What kinds of jobs share: every job, those that train, those on preferences, and those that sample."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from rlflow.spec.base import Spec
from rlflow.spec.data import DataSpec
from rlflow.spec.learner import LearnerSpec
from rlflow.spec.model import ModelSpec
from rlflow.spec.rewards import RewardPoolSpec, RewardSpec, name_problems
from rlflow.spec.rollout import RolloutSpec
from rlflow.spec.run import EvaluateSpec, RunSpec

_WHOLE_ON_EVERY_RANK = ("ppo", "gkd", "rm")
"""Kinds with a model beside the policy, or with another head."""


class Job(Spec):
    """What every job has."""

    kind: str
    """The algorithm."""
    run: RunSpec
    """Name, directory, seed, checkpoints."""
    model: ModelSpec
    """The model to train, or to ask."""
    data: DataSpec
    """Rows, and how they become tokens."""

    @property
    def other_models(self) -> dict[str, ModelSpec]:
        """Models beside it, by the name of their field."""
        return {}


class TrainingJob(Job):
    """A job that trains."""

    learner: LearnerSpec = LearnerSpec()
    """The learner group."""
    evaluate: EvaluateSpec = EvaluateSpec()
    """Evaluation on held-out rows."""
    steps: int | None = Field(default=None, ge=1)
    """Steps to train; set this or `epochs`."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the data; set this or `steps`."""

    def contradictions(self) -> Iterator[str]:
        """Between what every job that trains has."""
        if (self.steps is None) == (self.epochs is None):
            yield "set exactly one of steps and epochs"
        yield from self._evaluation_problems()
        sampling = {"temperature", "top_p", "max_completion_tokens", "num_samples"}
        given = [name for name in sorted(sampling) if getattr(self.evaluate, name) != EvaluateSpec.model_fields[name].default]
        if given and not isinstance(self, RolloutJob):
            yield f"evaluate.{given[0]}: a job of kind {self.kind} does not sample; its evaluation is by loss"
        if self.kind != "sft" and self.data.overlong not in ("error", "drop"):
            yield f"data.overlong: {self.data.overlong} is for kind sft; a job of kind {self.kind} needs error or drop"
        if self.kind != "sft" and self.data.loss_weights:
            yield f"data.loss_weights: a job of kind {self.kind} would not use them; remove them"
        if self.kind != "sft" and self.data.streaming is not None:
            yield f"data.streaming: is for kind sft; a job of kind {self.kind} loads its rows first; remove it"
        elif self.data.streaming is not None and self.steps is None:
            yield "steps: missing; the length of an epoch is unknown with data.streaming"
        for name in ("expert_parallel", "sequence_parallel"):
            if getattr(self.learner, name) > 1 and self.kind in _WHOLE_ON_EVERY_RANK:
                yield f"learner.{name}: a job of kind {self.kind} has models that cannot be spread this way; set it to 1"
        if self.learner.expert_parallel > 1 and self.model.lora is not None:
            yield "learner.expert_parallel: not with model.lora, whose base weights stay as they are; set it to 1"
        if self.model.is_quantised and self.learner.zero_stage == 3:
            yield "learner.zero_stage: 3 cannot partition the 4-bit weights of model.lora.quantization; use auto, 1 or 2"
        if self.learner.zero_stage == 0 and self.model.dtype != "float32":
            yield f"learner.zero_stage: 0 needs model.dtype float32, not {self.model.dtype}; use 1 or higher"

    def _evaluation_problems(self) -> Iterator[str]:
        """What needs evaluations must have them."""
        if self.run.early_stopping is not None and not self.evaluate.every:
            yield "run.early_stopping: needs evaluations during the run; set evaluate.every"
        for name in ("keep_best", "early_stopping"):
            if getattr(self.run, name) is not None and not self.data.holds_out:
                yield f"run.{name}: needs held-out rows; set data.held_out, or held_out of a source"

    @property
    @abstractmethod
    def rows_per_step(self) -> int:
        """Rows of the data set that a step takes."""

    @property
    def num_learners(self) -> int:
        """Models on a learner's device: the trained one, and a critic or a teacher. More than one take turns on GPUs, if the
        spec does not say that all stay.
        """
        return 1


class PreferenceJob(TrainingJob):
    """A job on preference rows: the learner alone."""

    batch_size: int = Field(default=16, ge=1)
    """Pairs, or labelled answers, in an optimiser step, over all ranks."""

    def contradictions(self) -> Iterator[str]:
        """Between data and objective."""
        yield from super().contradictions()
        if self.data.loss == "all":
            yield "data.loss: preferences compare answers; use default (the last answer) or last_round"

    @property
    def rows_per_step(self) -> int:
        """Pairs or labelled answers."""
        return self.batch_size

    @property
    def reference(self) -> Literal["swapped", "stored", "none"]:
        """Where the reference's log-probabilities come from."""
        return "none"


class RolloutJob(TrainingJob):
    """A job that samples: rollout, reward and learner workers by turns."""

    rollout: RolloutSpec = RolloutSpec()
    """The rollout workers and their sampling settings."""
    rewards: tuple[RewardSpec, ...] = Field(min_length=1)
    """What is rewarded; the weighted values are added up."""
    reward_pool: RewardPoolSpec = RewardPoolSpec()
    """The reward workers."""
    residency: Literal["auto", "turns", "together"] = "auto"
    """Engines sleep and the learner is offloaded by turns, or both stay on the GPU (together); auto: together if the plan's
    estimate says that both fit. Without GPUs both always stay."""
    prompts_per_step: int = Field(default=8, ge=1)
    """Prompts sampled for a step; with `rollout.num_generations` completions each."""

    def contradictions(self) -> Iterator[str]:
        """Between rewards, and in the evaluation."""
        yield from super().contradictions()
        yield from name_problems(self.rewards)
        if self.evaluate.temperature == 0 and self.evaluate.num_samples > 1:
            yield "evaluate.num_samples: with evaluate.temperature: 0 all samples of a row are the same"

    @property
    def longest_completion(self) -> int:
        """Tokens of the longest completion, in training or in evaluation."""
        return max(self.rollout.max_completion_tokens, self.evaluate.max_completion_tokens or 0)

    @property
    def rows_per_step(self) -> int:
        """Prompts."""
        return self.prompts_per_step

    @property
    def corrects_sampler(self) -> bool:
        """Whether the loss needs the sampler's log-probability of every token."""
        return False

    @property
    def logprob_mode(self) -> Literal["all", "sample", "none"]:
        """For which groups the sampler returns log-probabilities.

        None with top_p or top_k: they are renormalised there, and cannot be compared with the learner's.
        """
        if not self.rollout.samples_model_distribution:
            return "none"
        if self.rollout.sampler_logprobs != "auto":
            return self.rollout.sampler_logprobs
        return "all" if self.corrects_sampler else "sample"
