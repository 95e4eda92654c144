import pytest

from rlflow.rewards.format import FormatReward
from rlflow.spec.rewards import FormatSpec


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<think>a</think>\n<answer>b</answer>", 1.0),
        ("<think>a\nb</think><answer>c\nd</answer>", 1.0),
        ("<think>a</think>\n<answer>b</answer> ", 0.0),
        ("<think>a</think>\n<answer>b</answer>\n", 0.0),
        (" <think>a</think>\n<answer>b</answer>", 0.0),
        ("<think>a</think> so <answer>b</answer>", 0.0),
        ("<answer>b</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_think_answer_format(make_sample, completion, expected):
    assert FormatReward(FormatSpec())(make_sample(completion)) == expected


def test_own_pattern_must_match_the_whole_completion(make_sample):
    digits = FormatReward(FormatSpec(pattern=r"\d+"))
    assert [digits(make_sample(text)) for text in ("59", "59.", "a59")] == [1.0, 0.0, 0.0]
