from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from rlflow.rewards import RewardSample, RewardScorer, SampleScore
from rlflow.spec.rewards import PluginSpec

MakeSample = Callable[..., RewardSample]


@pytest.fixture
def make_sample() -> MakeSample:
    """Build a sample from the completion; keyword arguments that are no field become columns."""

    def make(completion: str = "", *, tokens: int | None = None, index: int = 0, **columns: Any) -> RewardSample:
        num_tokens = len(completion) if tokens is None else tokens
        return RewardSample(
            prompt_id=7,
            sample_index=index,
            messages=[{"role": "user", "content": "1+1?"}],
            prompt="<user>1+1?",
            completion=completion,
            completion_tokens=num_tokens,
            completion_token_ids=list(range(num_tokens)),
            finish_reason="length" if num_tokens >= 100 else "stop",
            columns=columns,
        )

    return make


@pytest.fixture
def write_plugin(tmp_path: Path) -> Callable[[str], Path]:
    """Write plugin.py beside the test; both the decorator and the standard modules are imported in it."""

    def write(source: str) -> Path:
        path = tmp_path / "plugin.py"
        path.write_text("import asyncio, math, os, sys, time\nimport rlflow\n" + dedent(source))
        return path

    return write


@pytest.fixture
def score_with(write_plugin: Callable[[str], Path], tmp_path: Path) -> Callable[..., list[SampleScore]]:
    """Score samples once with the object `f` of a plugin's source."""

    def score(source: str, samples: list[RewardSample], **fields: Any) -> list[SampleScore]:
        write_plugin(source)
        spec = PluginSpec(**{"target": "plugin.py:f", **fields})
        with RewardScorer([spec], max_completion_tokens=100, cwd=str(tmp_path)) as scorer:
            return scorer.score(samples)

    return score
