"""What has been sampled for a step so far, and whether that is enough to learn from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rlflow.algorithms.advantages import has_spread
from rlflow.cluster.handles import GroupHandle
from rlflow.errors import RewardError
from rlflow.spec.jobs import GrpoJob


@dataclass(slots=True)
class SampledStep:
    """All groups sampled for a step, those that training leaves out included."""

    groups: list[GroupHandle] = field(default_factory=list)
    """In the order of prompt ids, whatever the rounds."""
    num_rounds: int = 0
    reward_seconds: float = 0.0

    @property
    def num_prompts(self) -> int:
        """Prompts sampled."""
        return len(self.groups)

    @property
    def num_useful(self) -> int:
        """Groups whose rewards differ."""
        return sum(has_spread([score.total for score in group.scores]) for group in self.groups)

    def add(self, groups: Sequence[GroupHandle], reward_seconds: float) -> None:
        """The groups of one more round."""
        self.groups = sorted([*self.groups, *groups], key=lambda group: (group.summary.prompt_id, group.summary.slot))
        self.num_rounds += 1
        self.reward_seconds += reward_seconds


def check_useful(sampled: SampledStep, step: int, spec: GrpoJob, note: Callable[[str], None]) -> None:
    """Say that dynamic sampling found too few groups; raise `RewardError` if it found none."""
    found, wanted = sampled.num_useful, spec.prompts_per_step
    if found == wanted:
        return
    limit = f"{sampled.num_prompts} prompts (grpo.dynamic_sampling.max_batches x prompts_per_step)"
    if not found:
        raise RewardError(
            f"step {step}: the rewards of no group differ, after {limit}: the prompts are all too easy or too hard for the "
            "model, or the rewards do not tell its completions apart"
        )
    note(f"step {step}: only {found} of {wanted} groups have rewards that differ, after {limit}; the step trains on those")
