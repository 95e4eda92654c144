"""What the death of actors means to the controller."""

from typing import Any

from ray import ObjectRef
from ray.exceptions import ObjectLostError, RayTaskError

from rlflow.algorithms.pair_losses import PluginLossError
from rlflow.errors import GroupLost, LearnerError, RolloutError, SpecError, UserError

_SHOWN_CHARACTERS = 500
"""Of what Ray says of a death; what follows are causes that it may have."""


class LearnerLost(LearnerError):
    """A learner rank died, or what it was to train on is lost: the group must be rebuilt from the last checkpoint."""


class RolloutsLost(RolloutError):
    """Every rollout worker is dead: engines must be started and synced before sampling goes on."""


def user_error(error: RayTaskError) -> UserError | None:
    """What the user did wrong, without the actor's traceback, if that is why its method raised."""
    if isinstance(error.cause, PluginLossError):
        return SpecError(f"dpo.losses: {error.cause}")
    return error.cause if isinstance(error.cause, UserError) else None


def in_one_line(error: Exception) -> str:
    """Why an actor is gone: what its method raised, or what Ray knows."""
    text = str(error).strip()
    return text.splitlines()[-1] if isinstance(error, RayTaskError) else " ".join(text.split())[:_SHOWN_CHARACTERS]


async def unless_lost(reference: ObjectRef) -> Any:
    """What is referred to. Raises `GroupLost` if it, or what it was made of, is gone with a node."""
    try:
        return await reference
    except ObjectLostError as error:
        raise GroupLost(" ".join(str(error).split())) from error
