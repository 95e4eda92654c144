"""Starting from the latest checkpoint, and going on from it after the learner group has died."""

from collections.abc import Awaitable, Callable
from typing import Any

from rlflow.cluster.checkpoints import Checkpoints
from rlflow.cluster.failure import LearnerLost
from rlflow.cluster.learner_group import LearnerGroup
from rlflow.jobs.context import JobContext
from rlflow.loops.state import LoopState
from rlflow.observe.journal import Journal
from rlflow.spec.jobs import Job


async def run_loop(
    job: Job,
    context: JobContext,
    start: Callable[[], Awaitable[LearnerGroup]],
    loop_of: Callable[[LearnerGroup, Checkpoints, LoopState], Any],
    close: Callable[[], Awaitable[None]],
) -> None:
    """Start a learner group, bring it to the latest checkpoint and run its loop; again if it dies. At the end, `close`."""

    async def run_once() -> None:
        learner = await start()
        checkpoints = Checkpoints(context.run, learner, job.run)
        stored = await checkpoints.restore()
        state = LoopState.from_dict(stored) if stored else LoopState()
        if stored:
            context.journal.note(f"going on from the checkpoint of step {state.step}")
        await loop_of(learner, checkpoints, state).run()
        await learner.close()

    try:
        await _with_restarts(run_once, job.run.max_restarts, context.journal)
    finally:
        await close()


async def _with_restarts(run_once: Callable[[], Awaitable[None]], max_restarts: int, journal: Journal) -> None:
    for restart in range(max_restarts + 1):
        try:
            return await run_once()
        except LearnerLost as error:
            if restart == max_restarts:
                raise
            journal.note(f"{error}; going on from the latest checkpoint (restart {restart + 1} of {max_restarts})")
