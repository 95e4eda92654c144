"""What the death of actors means to the controller."""

from rlflow.errors import LearnerError, RolloutError


class LearnerLost(LearnerError):
    """A learner rank died: the group must be rebuilt from the last checkpoint."""


class RolloutsLost(RolloutError):
    """Every rollout worker is dead: engines must be started and synced before sampling goes on."""
