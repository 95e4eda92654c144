"""A GKD job: its teacher is a frozen model on the learner's ranks."""

from pathlib import Path

from rlflow.actors.learner import RoleSetup
from rlflow.jobs.context import JobContext
from rlflow.jobs.prepare import PreparedModel, check_vocabulary, conversation_lengths, fetch_model, prepare_conversations
from rlflow.jobs.sampling import Parts, run_sampling_job
from rlflow.loops.gkd import GkdLoop
from rlflow.spec.jobs import GkdJob


async def run_gkd_job(job: GkdJob, context: JobContext) -> None:
    """Train to the end, or from the latest checkpoint to the end."""

    def parts_of(model: PreparedModel) -> Parts:
        teacher = _teacher(job, model)
        if job.gkd.on_policy_fraction == 1:
            return Parts(GkdLoop, others=(teacher,), of_loop={"conversations": None})
        answers = prepare_conversations(context.rows[0], model.tokenizer, job, context.run)
        of_loop = {"conversations": conversation_lengths(answers)}
        return Parts(GkdLoop, others=(teacher,), conversations=(str(answers.path),), of_loop=of_loop)

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
    return RoleSetup("teacher", options, path, spec, job.learner.model_copy(update={"gradient_checkpointing": "none"}))
