"""rlflow: Ray-orchestrated post-training with vLLM rollouts, reward workers and DeepSpeed ZeRO-3 learners.

This package imports no heavy library: `import rlflow` is enough, and quick, for a reward plugin.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlflow.rewards.api import RewardSample, reward

__all__ = ["RewardSample", "reward"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in __all__:
        from rlflow.rewards import api

        return getattr(api, name)
    raise AttributeError(f"module 'rlflow' has no attribute {name!r}")
