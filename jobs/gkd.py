"""A GKD job: its teacher is a frozen model on the learner's ranks, or on ranks of its own."""

from pathlib import Path

from rlflow.actors.learner import LearnerSetup, RoleSetup
from rlflow.jobs.context import JobContext, Machine
from rlflow.jobs.prepare import PreparedModel, check_vocabulary, conversation_lengths, fetch_model, prepare_conversations
from rlflow.jobs.sampling import Parts, run_sampling_job
from rlflow.loops.gkd import GkdLoop
from rlflow.spec.jobs import GkdJob


async def run_gkd_job(job: GkdJob, context: JobContext) -> None:
    """Train to the end, or from the latest checkpoint to the end."""

    def parts_of(model: PreparedModel) -> Parts:
        teacher, lengths, files = _teacher(job, model), None, ()
        if job.gkd.on_policy_fraction < 1:
            answers = prepare_conversations(context.rows[0], model.tokenizer, job, context.run)
            lengths, files = conversation_lengths(answers), (str(answers.path),)
        shares_devices = job.teacher.num_ranks is None
        return Parts(
            GkdLoop,
            others=(teacher,) if shares_devices else (),
            teacher=None if shares_devices else _setup_alone(job, model, teacher, context.machine, files),
            conversations=files,
            of_loop={"conversations": lengths},
        )

    await run_sampling_job(job, context, parts_of)


def _teacher(job: GkdJob, model: PreparedModel) -> RoleSetup:
    spec = job.other_models["teacher"]
    path = fetch_model(spec, Path(job.run.dir), "teacher")
    check_vocabulary(path, model.tokenizer, "teacher")
    num_tokens = len(model.tokenizer)
    options = {
        "role": "teacher",
        "num_candidates": None if job.gkd.top_k is None else min(job.gkd.top_k, num_tokens),
        "num_tokens": num_tokens,
    }
    return RoleSetup("teacher", options, path, spec, job.teacher_learner)


def _setup_alone(
    job: GkdJob, model: PreparedModel, teacher: RoleSetup, machine: Machine, conversations: tuple[str, ...]
) -> LearnerSetup:
    """On ranks of its own, which have nothing else."""
    return LearnerSetup(
        model_path=teacher.model_path,
        tokenizer_path=model.tokenizer_path,
        model=teacher.model,
        learner=teacher.learner,
        temperature=job.rollout.temperature,
        seed=job.run.seed,
        keep_reference=False,
        num_threads=machine.threads(teacher.learner.num_ranks),
        conversations=conversations,
        options=teacher.options,
    )
