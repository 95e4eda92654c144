"""Going on after the learner group has died."""

from collections.abc import Awaitable, Callable

from rlflow.cluster.failure import LearnerLost
from rlflow.observe.journal import Journal


async def with_learner_restarts(run_once: Callable[[], Awaitable[None]], max_restarts: int, journal: Journal) -> None:
    """Run `run_once`, which starts a learner group from the latest checkpoint, again if it dies: at most `max_restarts` times."""
    for restart in range(max_restarts + 1):
        try:
            return await run_once()
        except LearnerLost as error:
            if restart == max_restarts:
                raise
            journal.note(f"{error}; going on from the latest checkpoint (restart {restart + 1} of {max_restarts})")
