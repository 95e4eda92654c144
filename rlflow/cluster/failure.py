"""What the death of actors means to the controller."""

from typing import Any

from ray import ObjectRef
from ray.exceptions import ObjectLostError

from rlflow.errors import GroupLost, LearnerError, RolloutError


class LearnerLost(LearnerError):
    """A learner rank died, or what it was to train on is lost: the group must be rebuilt from the last checkpoint."""


class RolloutsLost(RolloutError):
    """Every rollout worker is dead: engines must be started and synced before sampling goes on."""


async def unless_lost(reference: ObjectRef) -> Any:
    """What is referred to. Raises `GroupLost` if it, or what it was made of, is gone with a node."""
    try:
        return await reference
    except ObjectLostError as error:
        raise GroupLost(" ".join(str(error).split())) from error
