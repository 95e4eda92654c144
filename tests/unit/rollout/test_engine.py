import asyncio
import json
from types import SimpleNamespace

import numpy as np
import pytest

from rlflow.errors import RolloutError, WeightSyncError
from rlflow.rollout.completions import GroupRequest
from rlflow.rollout.engine import RolloutEngine, _completion
from rlflow.rollout.model_settings import stop_token_ids
from rlflow.spec.rollout import RolloutSpec


class BrokenEngine:
    """Its workers fail, or its prefix cache is in use."""

    def __init__(self, *, workers_fail: bool) -> None:
        self._workers_fail = workers_fail

    async def call(self, function):
        return function(self)

    def collective_rpc(self, method: str, args: tuple[bytes, ...]) -> None:
        if self._workers_fail:
            raise RuntimeError("shapes do not match")

    def reset_prefix_cache(self) -> bool:
        return False


@pytest.mark.parametrize(("eos", "expected"), [(5, [5]), ([5, 7], [5, 7]), (None, [])])
def test_stop_tokens_come_from_the_generation_config(tmp_path, eos, expected):
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    assert stop_token_ids(str(tmp_path)) == expected


def test_a_model_directory_may_lack_a_generation_config(tmp_path):
    assert stop_token_ids(str(tmp_path)) == []


def test_logprobs_are_those_of_the_sampled_tokens():
    flat = SimpleNamespace(logprobs=[-0.5, -3.0, -0.25], start_indices=[0, 2])  # two tokens at the first position
    completion = _completion(SimpleNamespace(token_ids=[4, 2], logprobs=flat, finish_reason="length"))
    assert completion.logprobs is not None
    assert completion.logprobs.tolist() == [-0.5, -0.25]
    assert completion.token_ids.tolist() == [4, 2]
    assert completion.finish_reason == "length"


def test_logprobs_that_are_not_numbers_are_an_error():
    flat = SimpleNamespace(logprobs=[float("nan")], start_indices=[0])
    sample = SimpleNamespace(token_ids=[4], logprobs=flat, finish_reason="stop")
    with pytest.raises(RolloutError, match="not numbers: its weights are broken"):
        _completion(sample)


def test_sampling_without_weights_is_refused():
    engine = RolloutEngine(None, RolloutSpec(), [])
    with pytest.raises(RolloutError, match="before its first weight sync"):
        asyncio.run(engine.generate(GroupRequest(0, 0, np.arange(3), 1)))


def test_a_failure_in_a_worker_is_a_sync_error_and_leaves_no_weights():
    engine = RolloutEngine(BrokenEngine(workers_fail=True), RolloutSpec(), [])
    engine.weight_version = 3
    with pytest.raises(WeightSyncError, match="rlflow_begin_update failed in the rollout engine: shapes do not match"):
        asyncio.run(engine.begin_update())
    assert engine.weight_version is None


def test_a_prefix_cache_in_use_fails_the_sync():
    engine = RolloutEngine(BrokenEngine(workers_fail=False), RolloutSpec(), [])
    with pytest.raises(WeightSyncError, match="prefix cache could not be reset"):
        asyncio.run(engine.finish_update(4))
    assert engine.weight_version is None


def test_a_request_may_sample_otherwise_than_the_spec():
    engine = RolloutEngine(None, RolloutSpec(top_p=0.9, temperature=0.5, max_completion_tokens=8), [])
    own = engine._sampling(GroupRequest(0, 0, np.arange(3), 1, temperature=1.0, top_p=0.3, max_tokens=20))
    assert (own.temperature, own.top_p, own.max_tokens) == (1.0, 0.3, 20)
    usual = engine._sampling(GroupRequest(0, 0, np.arange(3), 1))
    assert (usual.temperature, usual.top_p, usual.max_tokens) == (0.5, 0.9, 8)
