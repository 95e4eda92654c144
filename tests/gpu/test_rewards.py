"""A reward model on a GPU."""

import pytest

from rlflow.rewards import RewardSample, RewardScorer
from rlflow.spec.rewards import ModelRewardSpec
from tests.unit.rewards.test_model import save


def sample(completion):
    messages = [{"role": "user", "content": "1+1"}]
    return RewardSample(0, 0, messages, "1+1", completion, len(completion), [], "stop", {})


def test_scores_are_those_of_the_processor(tmp_path):
    save(tmp_path / "reward")
    specs = [
        ModelRewardSpec(path="reward", name="processor", device="cpu"),
        ModelRewardSpec(path="reward", name="exact", dtype="float32", batch_size=2),
        ModelRewardSpec(path="reward", name="rounded"),
    ]
    with RewardScorer(specs, max_completion_tokens=100, cwd=str(tmp_path)) as scorer:
        scores = scorer.score([sample(answer) for answer in ("2", "1+1=2", "", "9" * 30, "7")])
    processor, exact, rounded = ([score.by_name[spec.name] for score in scores] for spec in specs)
    assert exact == pytest.approx(processor, abs=2e-3)
    assert rounded == pytest.approx(processor, abs=0.1)
