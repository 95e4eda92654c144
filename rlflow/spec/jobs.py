"""Job specs: one class a `kind`."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from rlflow.spec.algorithm import CriticSpec, GkdSpec, GrpoSpec, PpoSpec, TeacherSpec
from rlflow.spec.infer import InferSpec
from rlflow.spec.job import Job, PreferenceJob, RolloutJob, TrainingJob
from rlflow.spec.learner import LearnerSpec
from rlflow.spec.model import ModelSpec
from rlflow.spec.preferences import DpoSpec, KtoSpec, RewardModelSpec
from rlflow.spec.rewards import RewardPoolSpec, RewardSpec, name_problems
from rlflow.spec.rollout import GenerationSpec


class SftJob(TrainingJob):
    """Supervised fine-tuning: the learner alone."""

    kind: Literal["sft"]
    """The algorithm."""
    batch_size: int = Field(default=16, ge=1)
    """Conversations in an optimiser step, over all ranks."""
    temperature: float = Field(default=1.0, gt=0)
    """Logits are divided by this in the loss. Below 1, what the model samples at temperature 1 is more diverse than the data."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each target's probability spread over the vocabulary: keeps the model's samples diverse."""

    @property
    def rows_per_step(self) -> int:
        """Conversations."""
        return self.batch_size


class DpoJob(PreferenceJob):
    """Direct preference optimisation (Rafailov et al. 2023) and its relatives, on pairs of answers."""

    kind: Literal["dpo"]
    """The algorithm."""
    dpo: DpoSpec = DpoSpec()
    """The objective."""

    @property
    def reference(self) -> Literal["swapped", "stored", "none"]:
        """`dpo.reference`, if a loss needs it."""
        return self.dpo.reference if self.dpo.needs_reference else "none"


class KtoJob(PreferenceJob):
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024), on answers labelled desirable or not."""

    kind: Literal["kto"]
    """The algorithm."""
    kto: KtoSpec = KtoSpec()
    """The objective."""

    @property
    def reference(self) -> Literal["swapped", "stored", "none"]:
        """`kto.reference`."""
        return self.kto.reference


class RewardModelJob(PreferenceJob):
    """A reward model, trained on pairs of answers."""

    kind: Literal["rm"]
    """The algorithm."""
    rm: RewardModelSpec = RewardModelSpec()
    """The objective."""


class GrpoJob(RolloutJob):
    """GRPO (Shao et al. 2024)."""

    kind: Literal["grpo"]
    """The algorithm."""
    grpo: GrpoSpec = GrpoSpec()
    """The objective."""

    def contradictions(self) -> Iterator[str]:
        """Between the objective, sampling and training."""
        yield from super().contradictions()
        if self.rollout.num_generations < 2 and self.grpo.advantage_estimator != "reinforce_plus_plus":
            yield (
                "rollout.num_generations: a group needs at least 2 completions for "
                f"grpo.advantage_estimator: {self.grpo.advantage_estimator}"
            )
        if self.rollout.num_generations < 2 and self.grpo.drops_equal_rewards:
            name = "filter_zero_std" if self.grpo.filter_zero_std else "dynamic_sampling"
            yield (f"grpo.{name}: a group of rollout.num_generations = 1 would always be left out")
        if self.grpo.reference_every is not None and self.model.lora is not None:
            yield ("grpo.reference_every: with model.lora the reference is the model without adapters, always the same")
        if self.prompts_per_step % self.grpo.optimizer_steps_per_batch:
            yield (
                f"prompts_per_step: {self.prompts_per_step} prompts cannot be split evenly into "
                f"grpo.optimizer_steps_per_batch = {self.grpo.optimizer_steps_per_batch} optimiser steps"
            )
        if self.grpo.sampler_correction.mode != "none" and self.rollout.sampler_logprobs in (
            "sample",
            "none",
        ):
            yield ("rollout.sampler_logprobs: grpo.sampler_correction needs the sampler's log-probabilities; use auto or all")
        if self.grpo.sampler_correction.mode != "none" and not self.rollout.samples_model_distribution:
            yield (
                "grpo.sampler_correction.mode: cannot be used with rollout.top_p < 1 or rollout.top_k > 0, "
                "because the sampler's log-probabilities are renormalised there"
            )

    @property
    def max_prompts_per_step(self) -> int:
        """Prompts that a step may sample, those included that dynamic sampling replaces."""
        dynamic = self.grpo.dynamic_sampling
        return self.prompts_per_step * (1 if dynamic is None else dynamic.max_batches)

    @property
    def corrects_sampler(self) -> bool:
        """Whether `grpo.sampler_correction` is on."""
        return self.grpo.sampler_correction.mode != "none"


class PpoJob(RolloutJob):
    """PPO with a critic (Schulman et al. 2017)."""

    kind: Literal["ppo"]
    """The algorithm."""
    ppo: PpoSpec = PpoSpec()
    """The objective."""
    critic: CriticSpec = CriticSpec()
    """The critic."""

    def contradictions(self) -> Iterator[str]:
        """Between the objective, sampling and training."""
        yield from super().contradictions()
        if self.prompts_per_step % self.ppo.optimizer_steps_per_batch:
            yield (
                f"prompts_per_step: {self.prompts_per_step} prompts cannot be split evenly into "
                f"ppo.optimizer_steps_per_batch = {self.ppo.optimizer_steps_per_batch} optimiser steps"
            )
        if self.steps is not None and self.ppo.critic_warmup_steps >= self.steps:
            yield ("ppo.critic_warmup_steps: the policy would never be trained; set fewer than steps")

    @property
    def num_learners(self) -> int:
        """Policy and critic."""
        return 2

    @property
    def critic_learner(self) -> LearnerSpec:
        """The critic's settings: the policy's, with an optimiser and a schedule of its own."""
        return self.learner.model_copy(update={"optimizer": self.critic.optimizer, "schedule": self.critic.schedule})

    @property
    def other_models(self) -> dict[str, ModelSpec]:
        """What the critic starts from, if that is not the policy's model."""
        return {"critic": self.model.other(self.critic, lora=self.model.lora)} if self.critic.is_given else {}


class GkdJob(RolloutJob):
    """On-policy distillation (GKD, Agarwal et al. 2024): a student learns from a teacher's distributions."""

    kind: Literal["gkd"]
    """The algorithm."""
    teacher: TeacherSpec
    """The teacher."""
    gkd: GkdSpec = GkdSpec()
    """The objective."""
    rewards: tuple[RewardSpec, ...] = ()
    """Only measured: of the student's completions, and of the held-out rows' in evaluations."""

    def contradictions(self) -> Iterator[str]:
        """Between the objective, sampling and training."""
        yield from super().contradictions()
        if not self.rewards and self.data.holds_out:
            yield ("data.held_out: without rewards there is nothing to evaluate held-out rows by; add rewards, or set 0")

    @property
    def num_learners(self) -> int:
        """The student, and a teacher without devices of its own."""
        return 2 if self.teacher.num_ranks is None else 1

    @property
    def teacher_learner(self) -> LearnerSpec:
        """What holds for the teacher's ranks: the student's settings, but cut up by its own ranks alone if it has devices."""
        own: dict[str, Any] = {"gradient_checkpointing": "none"}
        if self.teacher.num_ranks is not None:
            own |= {"num_ranks": self.teacher.num_ranks, "zero_stage": "auto", "sequence_parallel": 1, "expert_parallel": 1}
        return self.learner.model_copy(update=own)

    @property
    def other_models(self) -> dict[str, ModelSpec]:
        """The teacher."""
        return {"teacher": self.model.other(self.teacher)}


class InferJob(Job):
    """Batch inference: engines alone answer the rows of a data set."""

    kind: Literal["infer"]
    """What the job does."""
    adapter: str | None = None
    """Adapters (LoRA) to merge into the model first: a directory, or the name of an earlier run."""
    rollout: GenerationSpec = GenerationSpec()
    """The engines and their sampling settings."""
    infer: InferSpec = InferSpec()
    """What is written."""
    rewards: tuple[RewardSpec, ...] = ()
    """What answers are judged by; the weighted values are added up, and written as `reward`."""
    reward_pool: RewardPoolSpec = RewardPoolSpec()
    """The reward workers."""

    def contradictions(self) -> Iterator[str]:
        """Settings of training, which do nothing here, and what needs a reward."""
        yield from name_problems(self.rewards)
        for section, names in _ONLY_TRAINING.items():
            spec = getattr(self, section)
            for name in names:
                if getattr(spec, name) != type(spec).model_fields[name].default:
                    yield f"{section}.{name}: a job of kind infer does not train; leave it out"
        for number, source in enumerate(self.data.sources):
            if source.held_out is not None:
                yield f"data.sources[{number}].held_out: a job of kind infer does not train; leave it out"
        if not self.rewards:
            if self.infer.keep == "best":
                yield "infer.keep: the best answer is told by its reward; give rewards"
            if self.infer.min_reward is not None:
                yield "infer.min_reward: give rewards"
            if self.reward_pool != RewardPoolSpec():
                yield "reward_pool: there are no rewards"
        if self.adapter is not None and self.model.trust_remote_code:
            yield "model.trust_remote_code: not with adapter, which is merged into models that transformers itself knows"
        if self.infer.keep == "best" and self.infer.num_samples == 1:
            yield "infer.keep: best of one answer; set infer.num_samples above 1"
        if self.rollout.temperature == 0 and self.infer.num_samples > 1:
            yield "infer.num_samples: with rollout.temperature: 0 all answers to a row are the same"


_ONLY_TRAINING = {
    "run": ("save_every", "keep_checkpoints", "keep_best", "keep_only_models", "early_stopping", "log_completions_every"),
    "model": ("lora", "experts_implementation"),
    "data": ("held_out", "max_tokens", "overlong", "loss", "loss_weights", "ignore_empty_think", "streaming"),
}

AnyJob = Annotated[SftJob | GrpoJob | PpoJob | GkdJob | DpoJob | KtoJob | RewardModelJob | InferJob, Field(discriminator="kind")]
JOB_SPECS: TypeAdapter[SftJob | GrpoJob | PpoJob | GkdJob | DpoJob | KtoJob | RewardModelJob | InferJob] = TypeAdapter(AnyJob)
JOB_KINDS: dict[str, type[Job]] = {
    "sft": SftJob,
    "grpo": GrpoJob,
    "ppo": PpoJob,
    "gkd": GkdJob,
    "dpo": DpoJob,
    "kto": KtoJob,
    "rm": RewardModelJob,
    "infer": InferJob,
}
"""Job classes by `kind`."""


def job_schema() -> dict[str, Any]:
    """The JSON Schema of a job spec, for editors."""
    return JOB_SPECS.json_schema()
