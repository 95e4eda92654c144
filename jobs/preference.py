"""Assembles and runs a job on preferences: DPO, KTO, or a reward model."""

from pathlib import Path
from typing import Any

from rlflow.actors.learner import LearnerSetup
from rlflow.cluster.checkpoints import Checkpoints
from rlflow.cluster.closing import close_run
from rlflow.cluster.learner_group import LearnerGroup
from rlflow.cluster.placement import Placement
from rlflow.data.order import RowOrder
from rlflow.jobs.context import JobContext
from rlflow.jobs.length import total_steps
from rlflow.jobs.prepare import cache_dir, prepare_model, prepare_rows
from rlflow.jobs.recovery import run_loop
from rlflow.jobs.sft import sft_devices
from rlflow.loops.preference import PreferenceLoop, plan_scoring, preference_objective
from rlflow.loops.state import LoopState
from rlflow.observe.run_dir import RunDirectory
from rlflow.spec.jobs import PreferenceJob, RewardModelJob


async def run_preference_job(job: PreferenceJob, context: JobContext) -> None:
    """Train to the end, or from the latest checkpoint to the end."""
    model = prepare_model(job, context.run)
    train, held_out = (prepare_rows(rows, model.tokenizer, job, context.run) for rows in context.rows)
    setup = LearnerSetup(
        model_path=model.path,
        tokenizer_path=model.tokenizer_path,
        model=job.model,
        learner=job.learner,
        temperature=1.0,
        seed=job.run.seed,
        keep_reference=job.reference == "swapped",
        num_threads=context.machine.threads(job.learner.num_ranks),
        conversations=(str(train.path), str(held_out.path)),
        references=tuple(reference_path(context.run, rows) for rows in (train, held_out)) if job.reference == "stored" else (),
        options={"role": "value"} if isinstance(job, RewardModelJob) else {},
    )
    devices = sft_devices(job, context.machine.device)
    placement = Placement(job.run.name, devices)

    async def start() -> LearnerGroup:
        learner = LearnerGroup(placement, devices, setup)
        await context.journal.timed("learner", learner.build)()
        for file, examples in enumerate((train, held_out)):  # before a checkpoint replaces the starting weights
            if setup.references and len(examples) and not Path(setup.references[file]).exists():
                await learner.store_reference(plan_scoring(examples.lengths, job.learner), file)
        return learner

    def loop_of(learner: LearnerGroup, checkpoints: Checkpoints, state: LoopState) -> PreferenceLoop:
        return PreferenceLoop(
            spec=job,
            total_steps=total_steps(job, len(train) // 2),
            learner=learner,
            train=train.lengths,
            held_out=held_out.lengths,
            objective=preference_objective(job),
            order=RowOrder(len(train) // 2, job.data.seed, job.data.shuffle),
            checkpoints=checkpoints,
            journal=context.journal,
            state=state,
        )

    await run_loop(job, context, start, loop_of, lambda: close_run(placement))


def reference_path(run: RunDirectory, examples: Any) -> str:
    """Log-probabilities of the run's own starting weights: unlike the rows, no other run may use them."""
    return str(cache_dir(run) / examples.path.with_suffix(".reference.arrow").name)
