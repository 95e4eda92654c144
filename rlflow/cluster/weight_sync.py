"""One weight sync from the learner group to all rollout engines."""

from rlflow.cluster.learner_group import LearnerGroup
from rlflow.cluster.rollout_group import RolloutGroup


class WeightSync:
    """begin -> buckets -> finish. An engine whose sync fails is dead, never retried; the rest go on."""

    def __init__(self, learner: LearnerGroup, rollouts: RolloutGroup) -> None:
        self._learner, self._rollouts = learner, rollouts
        self.version = 0
        """Version of the last weights sent; never used twice in a run, also not after a rollback."""

    async def send(self) -> None:
        """Send the learner's weights to every live engine as a new version. Engines hold memory for weights, no cache."""
        self.version += 1
        await self._rollouts.call("begin_update")
        try:
            for index, bucket in enumerate(self._learner.buckets):
                handles = await self._learner.write_bucket(index)
                await self._rollouts.call("load_bucket", handles, bucket)
            await self._rollouts.call("finish_update", self.version)
        finally:
            await self._learner.release_buffer()
