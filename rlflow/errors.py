"""One exception per boundary. A user's mistake is a `SpecError` or `DataError`: it ends with exit code 2 and no traceback."""


class RlflowError(Exception):
    """Base of every error rlflow raises on purpose."""


class UserError(RlflowError):
    """Something the user wrote is wrong; the message names the field, file and row, or plugin, and what to do.

    Several problems found together stand in one error, one line each.
    """


class SpecError(UserError):
    """A job spec, or what it asks for, is wrong."""


class DataError(UserError):
    """A data set cannot be read, or a row of it is malformed."""


class HubError(RlflowError):
    """A hub cannot be reached, or fails."""


class RewardError(RlflowError):
    """Rewards could not be computed."""


class RewardPluginError(RewardError, UserError):
    """A reward plugin cannot be imported or built."""


class RolloutError(RlflowError):
    """The rollout engine failed."""


class EngineDied(RolloutError):
    """A rollout engine failed for good; the worker that holds it must be replaced."""


class GroupLost(RolloutError):
    """A sampled group is gone with the node that held it; it can be sampled again."""


class LearnerError(RlflowError):
    """The learner failed."""


class WeightSyncError(RlflowError):
    """Weights did not arrive in the rollout engine as they were sent; that engine must be restarted."""
