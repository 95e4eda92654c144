"""Batch inference on a real engine, as a user runs it: killed in the middle, and run again."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.integration.job_runs import MODEL, environment, run, start

pytestmark = pytest.mark.integration
ROWS = 100


def spec(folder):
    return {
        "kind": "infer",
        "run": {"name": "answers"},
        "model": MODEL,
        "data": {"sources": [{"type": "file", "path": "rows.jsonl"}], "max_prompt_tokens": 32},
        "rollout": {"max_completion_tokens": 12, "max_num_seqs": 8, "num_workers": 1},
        "infer": {"output": "out.jsonl", "num_samples": 2, "drop_truncated": True},
    }


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def test_a_killed_run_goes_on_without_loss_or_repetition(tmp_path):
    rows = [json.dumps({"messages": [{"role": "user", "content": f"{i}+1"}], "n": i}) for i in range(ROWS)]
    rows[7] = '{"messages": '
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "answers.yaml").write_text(json.dumps(spec(tmp_path)))
    out, errors = tmp_path / "out.jsonl", tmp_path / "out.errors.jsonl"

    process = start(tmp_path, "answers.yaml")
    while not errors.exists() or len(read(errors)) + len(read(out)) < 40:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    half = len(read(out)) + len(read(errors))
    assert half < 2 * ROWS - 1, "it was killed too late to see anything"
    with out.open("a") as file:
        file.write('{"messages": [{"role": "us')

    result = run(tmp_path, "answers.yaml")
    assert result.returncode == 0, result.stdout + result.stderr
    answers, rest = read(out), read(errors)
    seen = [(record["row_id"], record.get("sample")) for record in answers + rest]
    expected = [(f"rows.jsonl:{i + 1}", sample) for i in range(ROWS) if i != 7 for sample in (0, 1)]
    assert sorted(seen, key=str) == sorted([*expected, ("rows.jsonl:8", None)], key=str)
    assert all(record["finish_reason"] == "stop" for record in answers)
    assert {record.get("dropped", "bad row") for record in rest} == {"truncated", "bad row"}
    assert all(record["messages"][0]["content"] == f"{record['n']}+1" for record in answers)
    assert f"of {ROWS} rows are done already" in result.stdout and "tok/s" in result.stdout
    assert json.loads((tmp_path / "runs/answers/status.json").read_text())["state"] == "succeeded"

    again = subprocess.run(
        [sys.executable, "-m", "rlflow.cli", "infer", "answers.yaml", "infer.num_samples=3"],
        cwd=tmp_path,
        env=environment(PYTHONPATH=os.getcwd()),
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 2 and "holds a run of another spec (other at infer.num_samples)" in again.stderr
