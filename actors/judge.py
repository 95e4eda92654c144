"""The Ray actor of one judge's engine."""

from typing import Any

import ray

from rlflow.rollout.chat_endpoint import ChatEndpoint
from rlflow.rollout.engine import RolloutEngine
from rlflow.spec.rewards import JudgeEngineSpec, JudgeSpec
from rlflow.spec.rollout import GenerationSpec


class JudgeActor:
    """Holds an engine with the judge's weights, and an endpoint that rewards ask."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._engine: Any = None

    def __repr__(self) -> str:
        return self._label

    async def start(self, judge: JudgeSpec, engine: JudgeEngineSpec, num_threads: int | None) -> str:
        """Start the engine; the endpoint's URL."""
        from transformers import AutoTokenizer

        spec = GenerationSpec(**engine.model_dump(exclude={"max_model_tokens", "dtype"}), max_completion_tokens=judge.max_tokens)
        self._engine = await RolloutEngine.start(
            judge.model,
            spec,
            dtype=engine.dtype,
            max_model_tokens=engine.max_model_tokens,
            seed=0,
            load_weights=True,
            num_threads=num_threads,
        )
        tokenizer = AutoTokenizer.from_pretrained(judge.model)
        return ChatEndpoint(self._engine, tokenizer, ray.util.get_node_ip_address()).url

    async def check(self) -> None:
        """Raises `EngineDied` if the engine has."""
        await self._engine.check()
