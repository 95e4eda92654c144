"""A job whose rows are read while it trains."""

import json

import pytest

from rlflow.data.windows import Windows
from tests.integration.job_runs import metrics, run, sft_spec, write_job

pytestmark = pytest.mark.integration


def test_a_job_reads_its_rows_while_it_trains(tmp_path, ray_head):
    """100 rows in windows of 40, in steps of 16: two passes. That a run goes on from any row is a unit test."""
    rows = [{"query": f"{n // 10}+{n % 10}", "response": str(n // 10 + n % 10)} for n in range(108)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"sources": ["rows.jsonl"], "held_out": 8, "max_tokens": 48, "streaming": {"buffer_rows": 40}}
    spec = sft_spec(run={"name": "stream", "save_every": 4}, data=data, steps=14)
    result = run(tmp_path, write_job(tmp_path, spec), env=ray_head.driver_env)
    assert result.returncode == 0, result.stdout + result.stderr
    runs = tmp_path / "runs"
    logged = metrics(runs / "stream")
    assert [row["epoch"] for row in logged[1:]] == [0] * 7 + [1] * 7
    assert logged[-1]["eval_loss"] < logged[0]["eval_loss"]
    (folder,) = (runs / "stream" / "data").glob("stream-*")
    assert len(list(folder.glob("*.arrow"))) <= 3, "windows that were trained on are removed"
    assert len(Windows(folder)[14 * 16 - 1][0]) > 10
