import threading
import time

import pytest

from rlflow.rewards import RewardScorer
from rlflow.spec.rewards import FormatSpec, PluginSpec


@pytest.fixture
def samples(make_sample):
    return [make_sample(text) for text in ("good", "bad", "good", "good")]


def totals(scores):
    return [score.total for score in scores]


def messages(scores):
    return ["; ".join(failure.message for failure in score.failures) for score in scores]


BAD_ACTIONS = {
    "raise ValueError('no\\nluck')": "ValueError: no luck",
    "return float('nan')": "returned nan, expected a finite number or None",
    "return 'high'": "returned str 'high', expected a number or None",
    "sys.exit(3)": "SystemExit: 3",
    "os._exit(3)": "its process ended with exit status 3",
    "os.kill(os.getpid(), 11)": "its process was ended by SIGSEGV",
    "os.kill(os.getpid(), 9)": "its process was ended by SIGKILL (out of memory?)",
    "time.sleep(600)": "no result within 0.5 s (`timeout_s`)",
    "[time.sleep(0.1) for _ in iter(int, 1)]": "no result within 0.5 s (`timeout_s`)",
}


@pytest.mark.parametrize(("action", "message"), BAD_ACTIONS.items())
def test_only_the_bad_sample_fails(score_with, samples, action, message):
    source = f"""
    @rlflow.reward
    def f(sample):
        if sample.completion == "bad":
            {action}
        return 1.0
    """
    scores = score_with(source, samples, timeout_s=0.5)
    assert totals(scores) == [1.0, None, 1.0, 1.0]
    assert messages(scores) == ["", message, "", ""]
    assert scores[1].by_name == {"f": None}


def test_a_failure_carries_its_traceback(score_with, samples):
    source = """
    @rlflow.reward
    def f(sample):
        return 1 / 0
    """
    (failure,) = score_with(source, samples)[0].failures
    assert (failure.reward, failure.message) == ("f", "ZeroDivisionError: division by zero")
    assert "plugin.py" in failure.traceback and "return 1 / 0" in failure.traceback


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ("return [1.0]", "returned 1 values for 4 samples"),
        ("return 1.0", "returned float 1.0, expected a list of 4 numbers or None"),
        ("raise ValueError('no luck')", "ValueError: no luck"),
        ("os._exit(0)", "its process ended with exit status 0"),
        ("time.sleep(600)", "no result within 0.5 s (`timeout_s`)"),
    ],
)
def test_a_bad_batch_fails_whole(score_with, samples, action, message):
    source = f"""
    def f(completions, **kwargs):
        {action}
    """
    scores = score_with(source, samples, timeout_s=0.5)
    assert totals(scores) == [None] * 4
    assert messages(scores) == [message] * 4


def test_one_nan_in_a_batch_fails_one_sample(score_with, samples):
    source = """
    def f(completions, **kwargs):
        return [math.nan if c == "bad" else 1.0 for c in completions]
    """
    assert totals(score_with(source, samples)) == [1.0, None, 1.0, 1.0]


def test_a_column_that_is_not_there(score_with, make_sample):
    source = """
    def f(completions, solution):
        return [1.0]
    """
    (score,) = score_with(source, [make_sample("good", answer="59")])
    assert "it takes 'solution', which is no column of the data (there are: answer, " in messages([score])[0]


def test_one_hanging_coroutine_fails_alone(score_with, samples):
    source = """
    @rlflow.reward
    async def f(sample):
        await asyncio.sleep(600 if sample.completion == "bad" else 0.01)
        return 1.0
    """
    scores = score_with(source, samples, timeout_s=0.5)
    assert totals(scores) == [1.0, None, 1.0, 1.0]
    assert messages(scores)[1] == "no result within 0.5 s (`timeout_s`)"


def test_a_coroutines_own_timeout_error_is_not_ours(score_with, samples):
    source = """
    @rlflow.reward
    async def f(sample):
        raise TimeoutError("the judge is slow")
    """
    assert messages(score_with(source, samples[:1])) == ["TimeoutError: the judge is slow"]


def test_a_coroutine_that_blocks_the_loop_is_killed(score_with, samples):
    source = """
    @rlflow.reward
    async def f(sample):
        if sample.completion == "bad":
            time.sleep(600)
        return 1.0
    """
    scores = score_with(source, samples, timeout_s=0.2)
    assert scores[1].total is None
    assert messages(scores)[1] == "no result within 0.2 s (`timeout_s`)"


def test_other_rewards_and_later_calls_are_not_harmed(write_plugin, tmp_path, samples, make_sample):
    write_plugin("""
    @rlflow.reward
    def f(sample):
        return os._exit(1) if sample.completion == "bad" else 1.0
    """)
    specs = [FormatSpec(pattern="good"), PluginSpec(target="plugin.py:f", weight=0.5)]
    with RewardScorer(specs, max_completion_tokens=100, cwd=str(tmp_path)) as scorer:
        scores = scorer.score(samples)
        assert totals(scores) == [1.5, None, 1.5, 1.5]
        assert scores[1].by_name == {"format": 0.0, "f": None}
        assert totals(scorer.score([make_sample("good")])) == [1.5]
        assert scorer.score([]) == []


def test_limits_hold_off_the_main_thread(write_plugin, tmp_path, samples):
    write_plugin("""
    @rlflow.reward
    def f(sample):
        return time.sleep(600) if sample.completion == "bad" else 1.0
    """)
    scores = []

    def build_score_and_leave():
        spec = PluginSpec(target="plugin.py:f", timeout_s=0.5)
        scorer = RewardScorer([spec], max_completion_tokens=100, cwd=str(tmp_path))
        scores.append((scorer, scorer.score(samples)))

    thread = threading.Thread(target=build_score_and_leave)
    thread.start()
    thread.join(20)
    ((scorer, first),) = scores
    assert totals(first) == [1.0, None, 1.0, 1.0]
    time.sleep(0.2)  # the process must not die with the thread that built the scorer
    with scorer:
        assert messages(scorer.score(samples)) == messages(first)
