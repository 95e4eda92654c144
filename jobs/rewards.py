"""What a job's rewards need: reward models of earlier runs, and their place on the devices."""

from pathlib import Path
from typing import Literal

from rlflow.actors.reward import RewardSetup
from rlflow.jobs.adapters import fetch_from_hub
from rlflow.jobs.context import JobContext
from rlflow.jobs.prepare import PreparedModel, fetch_model
from rlflow.spec.jobs import InferJob, RolloutJob
from rlflow.spec.model import ModelSpec
from rlflow.spec.rewards import JudgeEngineSpec, JudgeSpec, ModelRewardSpec, RewardSpec, judges_in_engines


def reward_models(job: RolloutJob | InferJob) -> dict[str, ModelSpec]:
    """Reward models by the name of their field."""
    return {
        f"rewards[{i}]": job.model.other(reward) for i, reward in enumerate(job.rewards) if isinstance(reward, ModelRewardSpec)
    }


def judges(job: RolloutJob | InferJob) -> dict[str, tuple[JudgeSpec, JudgeEngineSpec]]:
    """Judges in engines of the job, and the settings of these, by the name of their model's field."""
    return {f"rewards[{index}].model": judge for index, judge in judges_in_engines(job.rewards).items()}


def score_on_devices(job: RolloutJob | InferJob, device: Literal["gpu", "cpu"]) -> bool:
    """Whether reward workers hold models on GPUs."""
    return device == "gpu" and any(isinstance(reward, ModelRewardSpec) and reward.device == "auto" for reward in job.rewards)


def reward_setup(job: RolloutJob | InferJob, model: PreparedModel, context: JobContext) -> RewardSetup:
    """What the reward workers are started with."""
    return RewardSetup(
        rewards=find_reward_models(job),
        tokenizer_path=model.tokenizer_path,
        max_completion_tokens=job.rollout.max_completion_tokens,
        working_dir=context.working_dir,
        num_threads=context.machine.threads(1),
    )


def find_reward_models(job: RolloutJob | InferJob) -> tuple[RewardSpec, ...]:
    """The job's rewards, their models as paths or hub ids that transformers can load. Raises `SpecError`."""
    found: dict[int, RewardSpec] = dict(enumerate(job.rewards))
    for index, reward in found.items():
        if isinstance(reward, ModelRewardSpec):
            path = fetch_model(job.model.other(reward), Path(job.run.dir), f"rewards[{index}]")
            found[index] = reward.model_copy(update={"path": path, "from_run": None, "hub": "huggingface"})
    for index, (judge, _) in judges_in_engines(job.rewards).items():
        path = fetch_from_hub(judge.model, "huggingface", f"rewards[{index}].model")
        found[index] = judge.model_copy(update={"model": str(Path(path).absolute()) if Path(path).is_dir() else path})
    return tuple(found.values())


def without_models_of(job: RolloutJob | InferJob, earlier_runs: tuple[str, ...]) -> RolloutJob | InferJob:
    """The job without rewards whose model an earlier job has yet to train."""
    later = [reward for reward in job.rewards if not (isinstance(reward, ModelRewardSpec) and reward.from_run in earlier_runs)]
    return job.model_copy(update={"rewards": tuple(later)})


def judge_devices(job: RolloutJob | InferJob) -> tuple[int, ...]:
    """Devices of each engine that holds a judge."""
    engines = [engine for _, engine in judges(job).values()]
    return tuple(engine.tensor_parallel_size for engine in engines for _ in range(engine.num_workers))
