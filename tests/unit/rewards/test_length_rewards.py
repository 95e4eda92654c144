import pytest

from rlflow.rewards.cosine import CosineReward
from rlflow.rewards.soft_overlong import SoftOverlongReward
from rlflow.spec.rewards import CosineSpec, SoftOverlongSpec


@pytest.mark.parametrize(
    ("completion", "tokens", "expected"),
    [
        ("59", 0, 1.0),
        ("59", 25, 0.926777),
        ("59", 50, 0.75),
        ("59", 100, 0.5),
        ("59", 200, 0.5),
        ("58", 0, -0.5),
        ("58", 25, -0.426777),
        ("58", 50, -0.25),
        ("58", 100, 0.0),
        ("58", 200, 0.0),
    ],
)
def test_cosine(make_sample, completion, tokens, expected):
    cosine = CosineReward(CosineSpec(max_tokens=100))
    assert cosine(make_sample(completion, tokens=tokens, solution="59")) == pytest.approx(expected, abs=1e-6)


def test_cosine_leaves_unreadable_golds_out(make_sample):
    assert CosineReward(CosineSpec(max_tokens=100))(make_sample("59", solution="no idea")) is None


@pytest.mark.parametrize(("tokens", "expected"), [(0, 0.0), (16384, 0.0), (18432, -0.5), (20480, -1.0), (22528, -1.0)])
def test_soft_overlong(make_sample, tokens, expected):
    penalty = SoftOverlongReward(SoftOverlongSpec(max_tokens=20480, cache_tokens=4096))
    assert penalty(make_sample(tokens=tokens)) == expected
