import io

import pytest
from rich.console import Console

from rlflow.observe.progress import Progress, duration


def shown(terminal, use):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=160, highlight=False, color_system=None)
    with Progress("my_run", "grpo", console) as progress:
        progress.begin(200)
        use(progress)
    return stream.getvalue()


ROW = {"step": 12, "reward_mean": 0.534, "loss": 0.01234, "tokens_per_second": 1234.4, "step_seconds": 1.2}


def test_one_plain_line_a_step_without_a_terminal():
    lines = shown(False, lambda progress: (progress.phase("learn"), progress.step(ROW))).splitlines()
    assert lines == [
        "my_run (grpo): 200 steps",
        "step 12/200  reward 0.53  loss 0.0123  1,234 tok/s  1.2 s/step  ETA 3:46",
    ]


def test_what_a_row_lacks_is_left_out():
    line = shown(False, lambda progress: progress.step({"step": 1, "loss": 2.0, "reward_mean": None}))
    assert line.splitlines()[1] == "step 1/200  loss 2.0000"


def test_remaining_time_follows_recent_steps():
    def use(progress):
        for step in range(1, 101):
            progress.step({"step": step, "step_seconds": 100.0 if step <= 80 else 1.0})

    assert shown(False, use).splitlines()[-1] == "step 100/200  1.0 s/step  ETA 1:40"


def test_a_long_line_or_one_with_brackets_stays_as_it_is():
    note = "rewards[0] " + "x" * 300
    assert note in shown(False, lambda progress: progress.note(note)).splitlines()


def test_terminal_shows_bar_phase_and_notes():
    def use(progress):
        progress.note("top_p < 1: the mismatch metric is null")
        progress.phase("generate")
        progress.step(ROW)

    text = shown(True, use)
    for part in ("my_run (grpo)", "12/200", "reward 0.53", "ETA 3:46", "generate", "top_p < 1: the mismatch"):
        assert part in text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (200, "3:20"), (3800, "1:03:20")])
def test_duration(seconds, text):
    assert duration(seconds) == text
