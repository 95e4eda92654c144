import pytest

from rlflow.errors import RewardError
from rlflow.rewards.accuracy import AccuracyReward
from rlflow.spec.rewards import AccuracySpec


@pytest.fixture(scope="module")
def accuracy() -> AccuracyReward:
    return AccuracyReward(AccuracySpec())


@pytest.mark.parametrize(
    ("completion", "solution"),
    [
        ("59", "59"),
        ("59", 59),
        ("59", "\\boxed{59}"),
        ("59", "$59$"),
        ("\\boxed{59}", "59"),
        ("The answer is $59$.", "59"),
        ("The answer is 59.", "59"),
        ("I tried 12 and 13.\nThe final answer is $\\boxed{59}$", "59"),
        ("<think>1</think>\n<answer>59</answer>", "59"),
        ("<think>12</think>\n<answer> \\frac{1}{2} </answer>", "<answer>0.5</answer>"),
        ("-30", "-30"),
        ("- 30", "-30"),
        ("59.", "59"),
        ("1,000", "1000"),
        ("10 000", "10000"),
        ("3.50", "3.5"),
        ("0.5", "1/2"),
        ("1/2", "\\frac{1}{2}"),
        ("3+4", "7"),
        ("3+4=7", "7"),
        ("= 59", "59"),
        ("1024", "2^{10}"),
        ("\\boxed{\\sqrt{2}}", "\\sqrt{2}"),
        ("$2\\pi$", "2\\pi"),
        ("1+x", "x+1"),
        ("\\boxed{(1,2)}", "(1,2)"),
        ("\\boxed{1,2}", "1,2"),
        ("50\\%", "50%"),
        ("72 apples", "They sold 48/2 = 24 and 48+24 = 72.\n#### 72"),
        ("18", "\\$18"),
        ("\\boxed{Tuesday}", "\\text{Tuesday}"),
        ("<answer>B</answer>", "B"),
    ],
)
def test_right_answers(accuracy, make_sample, completion, solution):
    assert accuracy(make_sample(completion, solution=solution)) == 1.0


@pytest.mark.parametrize(
    ("completion", "solution"),
    [
        ("12", "1"),
        ("12", "2"),
        ("1", "12"),
        ("-5", "5"),
        ("5", "-5"),
        ("- 5", "5"),
        ("5-", "5"),
        ("5+", "5"),
        ("5 9", "9"),
        ("5 9", "59"),
        ("1//2", "1"),
        ("1..2", "1"),
        ("12)", "12"),
        ("1..2", "1"),
        ("2", "2^{10}"),
        ("2", "2\\pi"),
        ("", "59"),
        ("   ", "0"),
        ("-", "0"),
        ("((((", "4"),
        ("no idea", "59"),
        ("\\boxed{58} 59", "59"),
        ("<answer>58</answer> 59", "59"),
        ("<answer>C</answer>", "B"),
        ("9" * 300, "9"),
    ],
)
def test_wrong_answers(accuracy, make_sample, completion, solution):
    assert accuracy(make_sample(completion, solution=solution)) == 0.0


@pytest.mark.parametrize("solution", ["", "no idea", None, "5-", "<answer></answer>"])
def test_unreadable_gold_leaves_the_sample_out(accuracy, make_sample, solution):
    assert accuracy(make_sample("59", solution=solution)) is None


def test_missing_column_names_it(accuracy, make_sample):
    with pytest.raises(RewardError, match="row has no column 'solution' \\(there are: answer, task\\)"):
        accuracy(make_sample("59", task="sum", answer="59"))


def test_column_of_a_wrong_type_names_it(accuracy, make_sample):
    with pytest.raises(RewardError, match="column 'solution' must hold text or a number, not list"):
        accuracy(make_sample("59", solution=["59"]))


def test_another_column(make_sample):
    assert AccuracyReward(AccuracySpec(column="answer"))(make_sample("59", answer="59", solution="1")) == 1.0
