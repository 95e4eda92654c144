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


class DynamicSamplingSpec(Spec):
    """Sample further prompts until every group of the batch has rewards that differ (DAPO, Yu et al. 2025, eq. 11)."""

    max_batches: int = Field(default=10, ge=1)
    """At most so many times `prompts_per_step` prompts are sampled for a step (NeMo RL: 10). If groups are missing then, the step
    trains on those found; if there are none at all, the job fails."""


class GrpoSpec(Spec):
    """Group-relative policy optimisation (Shao et al. 2024) and its common variants."""

    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo"] = "dapo"
    """Average of token losses: per sequence (grpo), over the step's tokens (bnpo), the batch's (dapo), a constant (dr_grpo).
    cispo and sapo replace the clip too: a bounded weight (averaged as dapo), a soft gate (averaged as grpo)."""
    importance_sampling: Literal["token", "sequence", "sequence_token"] = "token"
    """Ratio to the policy that sampled: each token's, the geometric mean over its sequence (GSPO; with epsilons around 3e-4), or
    that value with the token's own gradient (GSPO-token)."""
    advantage_estimator: Literal["grpo", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "gdpo"] = "grpo"
    """Reward minus the group's mean (grpo), that of the group's others (rloo), that of the batch (reinforce_plus_plus), the
    group's with the batch's deviation of the differences (reinforce_plus_plus_baseline); each reward by itself (gdpo)."""
    scale_rewards: Literal["group", "batch", "none"] | None = None
    """Divide advantages by the standard deviation of the group's rewards, of the batch's, or not at all. If not set: group for
    grpo, none for rloo, batch for the others, which know no other."""
    epsilon_low: float = Field(default=0.2, ge=0)
    """The ratio is clipped below at 1 - epsilon_low."""
    epsilon_high: float | None = Field(default=None, ge=0)
    """The ratio is clipped above at 1 + epsilon_high; epsilon_low if not set (DAPO: 0.28)."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Bound c of the loss at c |A| for negative advantages (dual-clip PPO: 3); none if not set."""
    sapo_tau_positive: float = Field(default=1.0, gt=0)
    """Temperature of sapo's gate for positive advantages."""
    sapo_tau_negative: float = Field(default=1.05, gt=0)
    """Temperature of sapo's gate for other advantages."""
    kl_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the estimate of KL(policy || reference); above 0 a reference is kept."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimate for each token, with d = reference - policy log-probability: -d (k1), d^2 / 2 (k2), exp(d) - d - 1 (k3)."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Add the KL estimates to the token losses, or subtract their sum over a completion from its reward."""
    entropy_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the policy's entropy, which is subtracted from the token losses; above 0 its gradient is computed too."""
    top_entropy_quantile: float = Field(default=1.0, gt=0, le=1)
    """Share of an optimiser step's tokens, those of the highest entropy, that the policy term trains (Wang et al. 2025: 0.2)."""
    reference_every: int | None = Field(default=None, ge=1)
    """Steps after which the policy becomes the new reference; if not set, the reference stays the model at the start."""
    optimizer_steps_per_batch: int = Field(default=1, ge=1)
    """The batch is split by prompt into this many optimiser steps."""
    epochs_per_batch: int = Field(default=1, ge=1)
    """Passes over each batch."""
    sampler_correction: SamplerCorrectionSpec = SamplerCorrectionSpec()
    """Correction for the difference between sampler and learner."""
    dynamic_sampling: DynamicSamplingSpec | None = None
    """Replace groups whose rewards are all equal by further prompts; if not set, they stay (or `filter_zero_std`)."""
    filter_zero_std: bool = False
    """Leave out groups whose rewards are all equal (their advantages are 0)."""
    filter_overlong: bool = False
    """Leave cut completions out of the loss; they still count in their group's mean."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.advantage_estimator not in ("grpo", "rloo") and self.scale != "batch":
            raise ValueError(f"scale_rewards: advantage_estimator: {self.advantage_estimator} always divides by the batch's")
        if self.advantage_estimator == "gdpo" and self.kl_in == "reward":
            raise ValueError("kl_in: advantage_estimator: gdpo normalises each reward by itself; use loss")
        return self

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        for name, reason in self._unused().items():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect with {reason}")
        return self

    def _unused(self) -> dict[str, str]:
        """Settings that the others leave without effect, and because of what."""
        unused: dict[str, str] = {}
        if self.surrogate != "clip":
            unused |= dict.fromkeys(("epsilon_low", "dual_clip"), f"loss_type: {self.loss_type}")
        if self.surrogate == "sapo":
            unused |= {"epsilon_high": "loss_type: sapo"}
        else:
            unused |= dict.fromkeys(("sapo_tau_positive", "sapo_tau_negative"), f"loss_type: {self.loss_type}")
        if self.kl_coefficient == 0:
            unused |= dict.fromkeys(("kl_estimator", "kl_in", "reference_every"), "kl_coefficient: 0")
        if self.dynamic_sampling is not None:
            unused |= {"filter_zero_std": "dynamic_sampling, which does the same"}
        return unused

    @property
    def drops_equal_rewards(self) -> bool:
        """Whether groups whose rewards are all equal are left out."""
        return self.filter_zero_std or self.dynamic_sampling is not None

    @property
    def scale(self) -> Literal["group", "batch", "none"]:
        """What advantages are divided by."""
        defaults: dict[str, Literal["group", "batch", "none"]] = {"grpo": "group", "rloo": "none"}
        return self.scale_rewards or defaults.get(self.advantage_estimator, "batch")

    @property
    def surrogate(self) -> Literal["clip", "cispo", "sapo"]:
        """What bounds the ratio."""
        return self.loss_type if self.loss_type in ("cispo", "sapo") else "clip"

    @property
    def average(self) -> Literal["grpo", "bnpo", "dr_grpo", "dapo"]:
        """How token losses are averaged."""
        if self.loss_type == "cispo":
            return "dapo"
        return "grpo" if self.loss_type == "sapo" else self.loss_type

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
    """Likeliest tokens of the teacher that are compared, all others being one more; null: the whole vocabulary, for which
    the teacher's hidden states are kept, and a copy of its output head."""


class TeacherSpec(OtherModelSpec):
    """The teacher: a language model with the vocabulary of `model`, which is not trained."""

    num_ranks: int | None = Field(default=None, ge=1)
    """Ranks on devices of the teacher's own, over which its weights are partitioned; null: it shares the learner's devices, with
    GPUs by turns."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if not self.is_given:
            raise ValueError("set exactly one of path and from_run")
        return self
