"""What a job's rewards need: reward models of earlier runs, and their place on the devices."""

from pathlib import Path
from typing import Literal

from rlflow.jobs.prepare import fetch_model
from rlflow.spec.jobs import InferJob, RolloutJob
from rlflow.spec.model import ModelSpec
from rlflow.spec.rewards import ModelRewardSpec, RewardSpec


def reward_models(job: RolloutJob | InferJob) -> dict[str, ModelSpec]:
    """Reward models by the name of their field."""
    return {
        f"rewards[{i}]": job.model.other(reward) for i, reward in enumerate(job.rewards) if isinstance(reward, ModelRewardSpec)
    }


def score_on_devices(job: RolloutJob | InferJob, device: Literal["gpu", "cpu"]) -> bool:
    """Whether reward workers hold models on GPUs."""
    return device == "gpu" and any(isinstance(reward, ModelRewardSpec) and reward.device == "auto" for reward in job.rewards)


def find_reward_models(job: RolloutJob | InferJob) -> tuple[RewardSpec, ...]:
    """The job's rewards, their models as paths or hub ids that transformers can load. Raises `SpecError`."""
    runs, models = Path(job.run.dir), reward_models(job)
    return tuple(
        reward.model_copy(update={"path": fetch_model(models[field], runs, field), "from_run": None, "hub": "huggingface"})
        if (field := f"rewards[{index}]") in models
        else reward
        for index, reward in enumerate(job.rewards)
    )


def without_models_of(job: RolloutJob | InferJob, earlier_runs: tuple[str, ...]) -> RolloutJob | InferJob:
    """The job without rewards whose model an earlier job has yet to train."""
    later = [reward for reward in job.rewards if not (isinstance(reward, ModelRewardSpec) and reward.from_run in earlier_runs)]
    return job.model_copy(update={"rewards": tuple(later)})
