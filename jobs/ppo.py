"""A PPO job: its critic is a second learner on the ranks."""

from pathlib import Path

from rlflow.actors.learner import RoleSetup
from rlflow.jobs.context import JobContext
from rlflow.jobs.prepare import PreparedModel, check_vocabulary, fetch_model
from rlflow.jobs.sampling import Parts, run_sampling_job
from rlflow.loops.ppo import PpoLoop
from rlflow.spec.jobs import PpoJob


async def run_ppo_job(job: PpoJob, context: JobContext) -> None:
    """Train to the end, or from the latest checkpoint to the end."""

    def parts_of(model: PreparedModel) -> Parts:
        return Parts(PpoLoop, keep_reference=job.ppo.kl_coefficient > 0, others=(_critic(job, model),))

    await run_sampling_job(job, context, parts_of)


def _critic(job: PpoJob, model: PreparedModel) -> RoleSetup:
    """From a model of its own, or from the policy's."""
    path, spec = model.path, job.model
    if job.critic.is_given:
        spec = job.other_models["critic"]
        path = fetch_model(spec, Path(job.run.dir), "critic")
        check_vocabulary(path, model.tokenizer, "critic")
    return RoleSetup("critic", {"role": "value"}, path, spec, job.critic_learner)
