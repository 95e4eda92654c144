import pytest

from rlflow.rewards.repetition import RepetitionReward
from rlflow.spec.rewards import RepetitionSpec


@pytest.mark.parametrize(
    ("completion", "fields", "expected"),
    [
        ("a b c a b c", {}, -0.25),  # abc bca cab abc
        ("A b c\na  B c", {}, -0.25),  # case and white space do not matter
        ("a b c d", {}, 0.0),
        ("a b", {}, 0.0),  # no n-gram at all
        ("", {}, 0.0),
        ("a a a a a", {}, -2 / 3),
        ("a a a a a", {"ngram": 1, "max_penalty": -0.5}, -0.4),
    ],
)
def test_repetition(make_sample, completion, fields, expected):
    assert RepetitionReward(RepetitionSpec(**fields))(make_sample(completion)) == pytest.approx(expected)


def test_a_reward_for_repeating_is_refused():
    with pytest.raises(ValueError, match="max_penalty"):
        RepetitionSpec(max_penalty=0.5)
