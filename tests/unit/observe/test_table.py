import io
from pathlib import Path

from rich.console import Console

from rlflow.observe.table import RunSummary, print_summary


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
