"""The Ray actor of one rollout worker."""

import os
from dataclasses import dataclass
from typing import Any

import ray

from rlflow.rollout.completions import CompletionGroup, GroupRequest, GroupSummary
from rlflow.rollout.engine import RolloutEngine
from rlflow.spec.rollout import GenerationSpec, RolloutSpec


@dataclass(frozen=True, slots=True)
class RolloutSetup:
    """What an engine is started with."""

    model_path: str
    """Directory or hub id with the configuration and tokenizer."""
    rollout: RolloutSpec | GenerationSpec
    dtype: str
    max_model_tokens: int
    seed: int
    can_sleep: bool
    """Whether it must be able to free its device memory."""
    num_threads: int | None
    """CPU threads; None leaves torch's default."""
    load_weights: bool = False
    """Load the model's own weights; else they come from the learner."""
    visible_gpus: str | None = None
    """CUDA_VISIBLE_DEVICES, if not what Ray sets it to."""


class RolloutActor:
    """Delegates to `rlflow.rollout.RolloutEngine`."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._engine: Any = None

    def __repr__(self) -> str:
        return self._label

    async def start(self, setup: RolloutSetup) -> None:
        """Start the engine."""
        if setup.visible_gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = setup.visible_gpus
        self._engine = await RolloutEngine.start(
            setup.model_path,
            setup.rollout,
            dtype=setup.dtype,
            max_model_tokens=setup.max_model_tokens,
            seed=setup.seed,
            load_weights=setup.load_weights,
            can_sleep=setup.can_sleep,
            num_threads=setup.num_threads,
        )

    @ray.method(num_returns=2)
    async def generate(self, request: GroupRequest) -> tuple[GroupSummary, CompletionGroup]:
        """Sample a group: its scalars for the controller, its arrays for rewards and learner."""
        group = await self._engine.generate(request)
        return group.summary(), group

    async def sleep(self) -> None:
        """Free the device."""
        await self._engine.sleep()

    async def wake_weights(self) -> None:
        """Take memory for the weights."""
        await self._engine.wake_weights()

    async def wake_cache(self) -> None:
        """Take memory for the KV cache."""
        await self._engine.wake_cache()

    async def begin_update(self) -> None:
        """Start a weight sync."""
        await self._engine.begin_update()

    async def load_bucket(self, handles: Any, bucket: Any) -> None:
        """Read one bucket."""
        await self._engine.load_bucket(handles, bucket)

    async def finish_update(self, version: int) -> None:
        """End a weight sync."""
        await self._engine.finish_update(version)
