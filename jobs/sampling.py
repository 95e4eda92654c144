"""Assembles and runs a job that samples; its kind adds the loop, and what else the learner ranks hold."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from rlflow.actors.learner import LearnerSetup, RoleSetup
from rlflow.actors.rollout import RolloutSetup
from rlflow.cluster.checkpoints import Checkpoints
from rlflow.cluster.closing import close_run
from rlflow.cluster.devices import DevicePlan, plan_devices
from rlflow.cluster.hand_over import HandOver
from rlflow.cluster.learner_group import LearnerGroup
from rlflow.cluster.placement import Placement
from rlflow.cluster.rank_group import RankGroup
from rlflow.cluster.residency import Residency
from rlflow.cluster.reward_group import RewardGroup
from rlflow.cluster.rollout_group import RolloutGroup
from rlflow.cluster.sampler import Sampler
from rlflow.cluster.teacher_group import TeacherGroup
from rlflow.cluster.verification import PROBE_PROMPTS, EngineVerification
from rlflow.cluster.weight_sync import WeightSync
from rlflow.data.order import RowOrder
from rlflow.jobs.context import JobContext, Machine
from rlflow.jobs.length import total_steps
from rlflow.jobs.prepare import PreparedModel, PromptRows, engine_settings, prepare_model, prepare_rows
from rlflow.jobs.recovery import run_loop
from rlflow.jobs.rewards import judge_devices, reward_setup, score_on_devices
from rlflow.loops.sampling import SamplingLoop, token_mean_settings
from rlflow.loops.state import LoopState
from rlflow.spec.jobs import GkdJob, RolloutJob


@dataclass(frozen=True, slots=True)
class Parts:
    """What a kind adds."""

    loop: type[SamplingLoop]
    keep_reference: bool = False
    others: tuple[RoleSetup, ...] = ()
    """Learners beside the policy."""
    teacher: LearnerSetup | None = None
    """A teacher on devices of its own, which the loop is given."""
    conversations: tuple[str, ...] = ()
    """Files of tokenised rows, for the learner."""
    of_loop: dict[str, Any] = field(default_factory=dict)
    """Fields of the loop that others lack."""


async def run_sampling_job(job: RolloutJob, context: JobContext, parts_of: Callable[[PreparedModel], Parts]) -> None:
    """Train to the end, or from the latest checkpoint to the end."""
    model = prepare_model(job, context.run)
    prompts, held_out = (prepare_rows(rows, model.tokenizer, job, context.run) for rows in context.rows)
    parts = parts_of(model)
    devices = sampling_devices(job, context.machine.device)
    placement = Placement(job.run.name, devices)
    rewards = RewardGroup(placement, devices, reward_setup(job, model, context), max_restarts=job.run.max_restarts)
    rollouts = RolloutGroup(placement, devices, _rollout_setup(job, model, context.machine), max_restarts=job.run.max_restarts)
    setup = _learner_setup(job, model, context.machine, parts)
    weights = WeightSync(rollouts, last_version=_last_version(context))
    groups: list[RankGroup] = []

    async def start() -> LearnerGroup:
        for group in groups:  # of those that work together one has died
            group.kill()
        learner = LearnerGroup(placement, devices, setup, can_offload=_takes_turns(job, context.machine))
        groups[:] = [learner, *([TeacherGroup(placement, devices, parts.teacher)] if parts.teacher else [])]
        if rewards.holds_devices:  # before the engine looks for what is free
            await rewards.ready()
        await asyncio.gather(_start(learner, rollouts, context), *(group.build() for group in groups[1:]))
        await rewards.ready()
        return learner

    def loop_of(learner: LearnerGroup, checkpoints: Checkpoints, state: LoopState) -> SamplingLoop:
        hand_over = _hand_over(job, learner, rollouts, weights, prompts)
        sampler = Sampler(rollouts, rewards, groups_in_flight=_groups_in_flight(job), deterministic=job.run.deterministic)
        return parts.loop(
            spec=job,
            total_steps=total_steps(job, len(prompts)),
            learner=learner,
            sampler=sampler,
            hand_over=hand_over,
            prompts=prompts,
            held_out=held_out,
            order=RowOrder(len(prompts), job.data.seed, job.data.shuffle),
            checkpoints=checkpoints,
            journal=context.journal,
            state=state,
            **parts.of_loop,
            **({"teacher": groups[1]} if parts.teacher else {}),
        )

    def close() -> Awaitable[None]:
        return close_run(placement, rollouts, rewards, *groups[1:])

    await run_loop(job, context, start, loop_of, close)


def sampling_devices(job: RolloutJob, device: Literal["gpu", "cpu"]) -> DevicePlan:
    """Learner ranks and engines on the same devices, by turns; reward workers beside them."""
    return plan_devices(
        device=device,
        learner_ranks=job.learner.num_ranks,
        rollout_workers=job.rollout.num_workers,
        tensor_parallel_size=job.rollout.tensor_parallel_size,
        reward_workers=job.reward_pool.num_workers,
        rewards_on_devices=score_on_devices(job, device),
        teacher_ranks=(job.teacher.num_ranks or 0) if isinstance(job, GkdJob) else 0,
        judges=judge_devices(job),
    )


async def _start(learner: LearnerGroup, rollouts: RolloutGroup, context: JobContext) -> None:
    """Build the learner and start engines: side by side on CPU. On a GPU the engine first (while the learner only imports), then
    asleep, because vLLM wants its share of the memory free when it starts."""
    journal = context.journal
    start, build = journal.timed("rollout engines", rollouts.start_missing), journal.timed("learner", learner.build)
    if context.machine.device == "cpu" or not rollouts.has_missing:
        await asyncio.gather(build(), start())
        return
    await asyncio.gather(start(), learner.import_libraries())
    if rollouts.can_sleep:
        await rollouts.call("sleep")
    await build()


def _takes_turns(job: RolloutJob, machine: Machine) -> bool:
    return machine.device == "gpu" and job.residency == "turns"


def _hand_over(
    job: RolloutJob, learner: LearnerGroup, rollouts: RolloutGroup, weights: WeightSync, prompts: PromptRows
) -> HandOver:
    residency = Residency(learner, rollouts, weights)
    verification = EngineVerification(learner, rollouts, residency, token_mean_settings(job), dtype=job.model.dtype)
    probe = [prompts.prompt_ids(i) for i in range(min(PROBE_PROMPTS, len(prompts)))]
    return HandOver(residency, weights, verification, probe)


def _learner_setup(job: RolloutJob, model: PreparedModel, machine: Machine, parts: Parts) -> LearnerSetup:
    return LearnerSetup(
        model_path=model.path,
        tokenizer_path=model.tokenizer_path,
        model=job.model,
        learner=job.learner,
        temperature=job.rollout.temperature,
        seed=job.run.seed,
        keep_reference=parts.keep_reference,
        num_threads=machine.threads(job.learner.num_ranks),
        conversations=parts.conversations,
        others=parts.others,
        takes_turns=_takes_turns(job, machine),
    )


def _rollout_setup(job: RolloutJob, model: PreparedModel, machine: Machine) -> RolloutSetup:
    return RolloutSetup(
        model_path=model.path,
        rollout=engine_settings(job.rollout, job.model),
        dtype=job.model.dtype,
        max_model_tokens=job.data.max_prompt_tokens + job.longest_completion,
        seed=job.run.seed,
        can_sleep=_takes_turns(job, machine),
        num_threads=machine.threads(job.rollout.num_workers),
    )


def _groups_in_flight(job: RolloutJob) -> int:
    """Enough groups an engine to keep all its sequences busy, and one waiting."""
    return math.ceil(job.rollout.max_num_seqs / job.rollout.num_generations) + 1


def _last_version(context: JobContext) -> int:
    """A weight version that no sample of an earlier start can carry: the last logged step sent one more than it sampled with."""
    logged = [int(row.get("weight_version") or 0) for row in context.run.read_metrics()]
    return max(logged) + 2 if logged else 0
