"""Settings of the training objectives."""

from typing import Literal, Self

from pydantic import Field, model_validator

from rlflow.spec.base import Spec
from rlflow.spec.learner import OptimizerSpec, ScheduleSpec
from rlflow.spec.model import OtherModelSpec


class SamplerCorrectionSpec(Spec):
    """Importance weights between sampler and learner (Yao et al. 2025, truncated importance sampling)."""

    mode: Literal["none", "truncate", "mask"] = "none"
    """truncate: weight min(w, cap); mask: tokens with w above cap are dropped; w = exp(old - sampler log-probability)."""
    cap: float = Field(default=2.0, gt=0)
    """Upper bound of a token's weight (verl default)."""


class GrpoSpec(Spec):
    """Group-relative policy optimisation (Shao et al. 2024) and its common variants."""

    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "dapo"
    """Average of token losses: per sequence (grpo), over the step's tokens (bnpo), the batch's (dapo), a constant (dr_grpo)."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Divide advantages by the standard deviation of the group's rewards, of the batch's, or not at all."""
    epsilon_low: float = Field(default=0.2, ge=0)
    """The ratio is clipped below at 1 - epsilon_low."""
    epsilon_high: float | None = Field(default=None, ge=0)
    """The ratio is clipped above at 1 + epsilon_high; epsilon_low if not set (DAPO: 0.28)."""
    kl_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the k3 estimate of KL(policy || reference) in the loss; above 0 a reference is kept."""
    optimizer_steps_per_batch: int = Field(default=1, ge=1)
    """The batch is split by prompt into this many optimiser steps."""
    epochs_per_batch: int = Field(default=1, ge=1)
    """Passes over each batch."""
    sampler_correction: SamplerCorrectionSpec = SamplerCorrectionSpec()
    """Correction for the difference between sampler and learner."""
    filter_zero_std: bool = False
    """Leave out groups whose rewards are all equal (their advantages are 0)."""
    filter_overlong: bool = False
    """Leave cut completions out of the loss; they still count in their group's mean."""

    @property
    def is_on_policy(self) -> bool:
        """Whether each batch is used for exactly one optimiser step, so that the ratio is 1."""
        return self.optimizer_steps_per_batch == 1 and self.epochs_per_batch == 1

    @property
    def clip_range(self) -> tuple[float, float]:
        """Bounds of the unclipped ratio."""
        high = self.epsilon_low if self.epsilon_high is None else self.epsilon_high
        return 1 - self.epsilon_low, 1 + high


class PpoSpec(Spec):
    """Proximal policy optimisation with a critic (Schulman et al. 2017); defaults are those of TRL and ms-swift."""

    epsilon: float = Field(default=0.2, gt=0)
    """The policy's ratio is clipped to 1 - epsilon and 1 + epsilon."""
    value_clip_range: float | None = Field(default=0.2, gt=0)
    """The critic's values are clipped to their old ones +- this in its loss; null: not clipped."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount of a reward for each token that it comes later."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """Of generalised advantage estimation: 0 trusts the critic, 1 the rewards."""
    kl_coefficient: float = Field(default=0.05, ge=0)
    """Weight of the KL to the reference that is taken off the reward of every token; above 0 a reference is kept."""
    kl_estimator: Literal["k1", "k3"] = "k1"
    """Estimate of that KL: log-ratio (k1), or the one that is never negative (k3)."""
    missing_eos_penalty: float | None = Field(default=None, ge=0)
    """Taken off the reward of a completion that was cut before it ended."""
    whiten_rewards: bool = False
    """Divide token rewards by their standard deviation over the batch. Advantages are always whitened over the batch."""
    optimizer_steps_per_batch: int = Field(default=1, ge=1)
    """The batch is split by prompt into this many optimiser steps (mini-batches)."""
    epochs_per_batch: int = Field(default=4, ge=1)
    """Passes over each batch."""
    critic_warmup_steps: int = Field(default=0, ge=0)
    """Steps of the job in which only the critic is trained."""

    @property
    def clip_range(self) -> tuple[float, float]:
        """Bounds of the unclipped ratio."""
        return 1 - self.epsilon, 1 + self.epsilon


class CriticSpec(OtherModelSpec):
    """The critic: a model with a scalar head, which starts from a reward model or a language model; from `model` if neither is
    set. Its head is zero at the start if the model has none. What is not here is as in `learner`.
    """

    optimizer: OptimizerSpec = OptimizerSpec(learning_rate=1e-5)
    """AdamW settings of the critic (learning rate: verl default)."""
    schedule: ScheduleSpec = ScheduleSpec()
    """Learning-rate schedule of the critic, over its own optimiser steps."""


class GkdSpec(Spec):
    """Generalised knowledge distillation (Agarwal et al. 2024); defaults are those of TRL and ms-swift, `top_k` is ours."""

    beta: float = Field(default=0.5, ge=0, le=1)
    """Of the generalised Jensen-Shannon divergence; 0: forward KL(teacher || student), 1: reverse KL(student || teacher)."""
    on_policy_fraction: float = Field(default=0.5, ge=0, le=1)
    """Probability that a step trains on completions of the student (lambda in the paper); else it trains on the rows' answers."""
    top_k: int | None = Field(default=64, ge=1)
    """Likeliest tokens of the teacher that are compared, all others being one more; null: the whole vocabulary, of which every
    trained token then takes 12 bytes an entry."""


class TeacherSpec(OtherModelSpec):
    """The teacher: a language model with the vocabulary of `model`, which is not trained."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if not self.is_given:
            raise ValueError("set exactly one of path and from_run")
        return self
