"""Assembles and runs an SFT job."""

from typing import Literal

from rlflow.actors.learner import LearnerSetup
from rlflow.cluster.checkpoints import Checkpoints
from rlflow.cluster.closing import close_run
from rlflow.cluster.devices import DevicePlan, plan_devices
from rlflow.cluster.learner_group import LearnerGroup
from rlflow.cluster.placement import Placement
from rlflow.jobs.context import JobContext
from rlflow.jobs.length import total_steps
from rlflow.jobs.prepare import conversation_lengths, prepare_model, prepare_rows, row_order
from rlflow.jobs.recovery import run_loop
from rlflow.loops.sft import SftLoop
from rlflow.loops.state import LoopState
from rlflow.spec.jobs import SftJob, TrainingJob


async def run_sft_job(job: SftJob, context: JobContext) -> None:
    """Train to the end, or from the latest checkpoint to the end."""
    model = prepare_model(job, context.run)
    train, held_out = (prepare_rows(rows, model.tokenizer, job, context.run) for rows in context.rows)
    setup = LearnerSetup(
        model_path=model.path,
        tokenizer_path=model.tokenizer_path,
        model=job.model,
        learner=job.learner,
        temperature=job.temperature,
        seed=job.run.seed,
        keep_reference=False,
        num_threads=context.machine.threads(job.learner.num_ranks),
        conversations=(str(train.path), str(held_out.path)),
    )
    devices = sft_devices(job, context.machine.device)
    placement = Placement(job.run.name, devices)

    async def start() -> LearnerGroup:
        learner = LearnerGroup(placement, devices, setup)
        await context.journal.timed("learner", learner.build)()
        return learner

    def loop_of(learner: LearnerGroup, checkpoints: Checkpoints, state: LoopState) -> SftLoop:
        return SftLoop(
            spec=job,
            total_steps=total_steps(job, None if job.data.streaming else len(train)),
            learner=learner,
            train=conversation_lengths(train),
            held_out=conversation_lengths(held_out),
            order=row_order(train, job),
            checkpoints=checkpoints,
            journal=context.journal,
            state=state,
        )

    await run_loop(job, context, start, loop_of, lambda: close_run(placement))


def sft_devices(job: TrainingJob, device: Literal["gpu", "cpu"]) -> DevicePlan:
    """One device a learner rank."""
    return plan_devices(
        device=device, learner_ranks=job.learner.num_ranks, rollout_workers=0, tensor_parallel_size=1, reward_workers=0
    )
