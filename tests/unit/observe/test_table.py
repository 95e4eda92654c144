import io
from pathlib import Path

from rich.console import Console

from rlflow.observe.table import AnswersSummary, RunSummary, print_answers, print_summary


def test_table_shows_before_and_after_and_paths_in_one_piece():
    stream = io.StringIO()
    deep = Path("/data") / ("x" * 90) / "model"
    rows = [
        RunSummary("quickstart_sft", "sft", "eval_accuracy", None, 0.25, 61.0, None, None),
        RunSummary(
            "quickstart_grpo", "grpo", "eval_accuracy", 0.25, 0.8125, 125.0, deep, Path("/r/report.html"), Path("/r/best")
        ),
    ]
    print_summary(rows, Console(file=stream, width=80, color_system=None, highlight=False))
    lines = stream.getvalue().splitlines()
    sft, grpo = (next(line for line in lines if name in line) for name in ("quickstart_sft", "quickstart_grpo"))
    assert [part.strip() for part in sft.strip("│").split("│")][1:] == [
        "sft",
        "eval_accuracy",
        "–",
        "0.250",
        "1:01",
    ]
    assert [part.strip() for part in grpo.strip("│").split("│")][3:] == ["0.250", "0.812", "2:05"]
    assert f"quickstart_grpo model: {deep}" in lines
    assert "quickstart_grpo report: /r/report.html" in lines
    assert [line for line in lines if "best" in line] == ["quickstart_grpo best model: /r/best"]


def test_answers_are_counted_in_a_table_and_their_files_named_if_they_exist(tmp_path):
    stream = io.StringIO()
    (tmp_path / "all.errors.jsonl").touch()
    result = {"rows": 1234, "answers": 2000, "dropped": 7, "failed": 1, "prompt_tokens": 56789, "completion_tokens": 1234567}
    rows = [
        AnswersSummary("all", {**result, "seconds": 9.0, "tokens_per_second": 98.6}, tmp_path / "all.jsonl"),
        AnswersSummary("few", {"rows": 3, "answers": 3}, tmp_path / "few.jsonl"),
    ]
    print_answers(rows, Console(file=stream, width=80, color_system=None, highlight=False))
    lines = stream.getvalue().splitlines()
    cells = {line.strip("│").split("│")[0].strip(): line.strip("│").split("│")[1:] for line in lines if line.startswith("│")}
    assert [cell.strip() for cell in cells["all"]] == ["1,234", "2,000", "7", "1", "56,789", "1,234,567", "99"]
    assert [cell.strip() for cell in cells["few"]] == ["3", "3", "0", "0", "0", "0", "0"]
    assert f"all answers: {tmp_path / 'all.jsonl'}" in lines and f"few answers: {tmp_path / 'few.jsonl'}" in lines
    assert [line for line in lines if "without" in line] == [f"all rows without an answer: {tmp_path / 'all.errors.jsonl'}"]
