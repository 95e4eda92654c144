"""One weight sync from the learner group to all rollout engines."""

from rlflow.cluster.failure import LearnerLost
from rlflow.cluster.learner_group import LearnerGroup
from rlflow.cluster.rollout_group import RolloutGroup


class WeightSync:
    """begin -> buckets -> finish.

    An engine whose sync fails is dead, never retried in place; the rest go on. If the learner fails, every engine holds half of
    two versions, and all are dead.
    """

    def __init__(self, rollouts: RolloutGroup, *, last_version: int = 0) -> None:
        self._rollouts = rollouts
        self.version = last_version
        """Version of the last weights sent; never used twice in a run, also not after a rollback."""

    async def send(self, learner: LearnerGroup) -> None:
        """Send the learner's weights to every live engine as a new version. Engines hold memory for weights, no cache."""
        self.version += 1
        try:
            await self._rollouts.call("begin_update")
            for index, bucket in enumerate(learner.buckets):
                handles = await learner.write_bucket(index)
                await self._rollouts.call("load_bucket", handles, bucket)
            await self._rollouts.call("finish_update", self.version)
            await learner.release_buffer()
        except LearnerLost as error:
            self._rollouts.mark_all_dead(error)
            raise
