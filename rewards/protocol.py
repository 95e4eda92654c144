"""Messages between a reward's sandbox and its process."""

from dataclasses import dataclass
from enum import Enum

from rlflow.spec.rewards import RewardSpec


class CallMode(Enum):
    """How samples reach a reward."""

    ONE_BY_ONE = "one by one"
    CONCURRENT = "concurrent"
    BATCH = "batch"


@dataclass(frozen=True, slots=True)
class Start:
    """First message to the process: what to build. Relative plugin paths start at `cwd`."""

    spec: RewardSpec
    cwd: str


@dataclass(frozen=True, slots=True)
class Ready:
    """Its answer; `declared_name` is the name given in the plugin's decorator."""

    mode: CallMode
    declared_name: str | None


@dataclass(frozen=True, slots=True)
class StartFailed:
    """Its answer if the reward cannot be built; one line."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """What stands in place of a sample's value when it could not be computed."""

    message: str
    traceback: str = ""


Outcome = float | None | Failed
Outcomes = dict[int, Outcome]
"""Outcomes by position in the list of samples sent; an answer may come in several such messages."""
