import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from rlflow import cli
from rlflow.client import JobInfo
from rlflow.errors import RolloutError, SpecError, UserError
from rlflow.spec.jobs import JOB_KINDS


def rlflow(*arguments, cwd):
    command = [sys.executable, "-m", "rlflow.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment())


def environment():
    return {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1]), "COLUMNS": "200", "HF_HUB_OFFLINE": "1"}


def test_help_names_every_verb(tmp_path):
    shown = rlflow("--help", cwd=tmp_path)
    assert shown.returncode == 0
    verbs = ("run", "submit", "status", "logs", "stop", "list", "plan", "data", "schema", "chat", "infer", "export", "convert")
    for verb in verbs:
        assert f" {verb} " in shown.stdout


def test_start_imports_nothing_heavy(tmp_path):
    code = """
import sys, rlflow.cli, rlflow.client
heavy = ("torch", "ray", "vllm", "deepspeed", "transformers", "datasets", "pydantic", "matplotlib")
print([name for name in heavy if name in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment())
    assert ran.stdout == "[]\n", ran.stderr


def test_schema_describes_every_kind_of_job(tmp_path):
    shown = rlflow("schema", cwd=tmp_path)
    schema = json.loads(shown.stdout)
    assert set(schema["discriminator"]["mapping"]) == set(JOB_KINDS)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("submit", "nope.yaml"), "nope.yaml: cannot be read: No such file or directory"),
        (("run", "steps=3"), "no spec file was given, only overrides"),
        (("infer", "../wrong/name", "--data", "a.jsonl"), "model: ../wrong/name is no run in runs, no directory and no hub id"),
        (
            ("list", "--address", "http://127.0.0.1:1"),
            "http://127.0.0.1:1: no Ray cluster answers there; see --address and RAY_ADDRESS",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, arguments, line):
    shown = rlflow(*arguments, cwd=tmp_path)
    assert (shown.returncode, shown.stdout, shown.stderr) == (2, "", line + "\n")


def test_infer_of_an_unknown_name_starts_nothing(tmp_path):
    shown = rlflow("infer", "wrong", "--data", "a.jsonl", cwd=tmp_path)
    (line,) = shown.stderr.splitlines()
    assert shown.returncode == 2 and not list(tmp_path.iterdir())
    assert line.startswith("model: there is no directory wrong (looked in ") and "no run in runs has this name" in line


def test_infer_runs_no_spec_of_another_kind(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "{kind: sft, run: {name: x}, model: {path: m}, data: {sources: a.jsonl}, steps: 1, batch_size: 1}"
    )
    shown = rlflow("infer", "a.yaml", cwd=tmp_path)
    assert (shown.returncode, shown.stderr) == (2, "a.yaml: kind: is sft, not infer; `rlflow run` runs it\n")


def test_mistakes_of_infer_name_its_flags(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text('{"model_type": "qwen3", "max_position_embeddings": 1024}')
    shown = rlflow("infer", "./m", "--data", "a.jsonl", "--output", "x.txt", cwd=tmp_path)
    assert shown.returncode == 2
    missing, output, length = shown.stderr.splitlines()
    assert missing.startswith("--data: there is no file a.jsonl") and output.startswith("--output: ")
    assert length.startswith("--max-prompt-tokens + --max-tokens: 3072 tokens are more than the model's 1024 positions")


def test_every_problem_of_a_spec_is_a_line(tmp_path):
    (tmp_path / "a.yaml").write_text("kind: sft\nrun: {name: x}\nstps: 1\nbatch_size: 0\n")
    shown = rlflow("submit", "a.yaml", cwd=tmp_path)
    lines = shown.stderr.splitlines()
    assert shown.returncode == 2 and "Traceback" not in shown.stderr
    assert all(line.startswith("a.yaml: ") for line in lines) and len(lines) >= 4


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (SpecError("a.yaml: x: wrong\na.yaml: y: wrong"), 2, "a.yaml: x: wrong\na.yaml: y: wrong\n"),
        (RolloutError("engine died"), 1, "RolloutError: engine died\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_exit_codes(monkeypatch, capsys, error, code, text):
    def fail(*_):
        raise error

    monkeypatch.setattr("rlflow.client.stop", fail)
    monkeypatch.setattr(sys, "argv", ["rlflow", "stop", "some_id"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code
    assert capsys.readouterr().err == text


def test_programming_errors_keep_their_traceback(monkeypatch):
    monkeypatch.setattr("rlflow.client.stop", lambda *_: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["rlflow", "stop", "some_id"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_overrides_are_told_from_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1.yaml").write_text("")
    assert cli.split_arguments(["a.yaml", "x=1", "lr=1.yaml", "y.z=k=v"]) == (
        ["a.yaml", "lr=1.yaml"],
        ["x=1", "y.z=k=v"],
    )
    with pytest.raises(UserError):
        cli.split_arguments(["x=1"])


def test_job_table_shows_jobs_of_others_too():
    jobs = [
        JobInfo("raysubmit_1", "RUNNING", None, "my_run", "grpo", "org/[model]", 1000.0, None),
        JobInfo("raysubmit_2", "PENDING", None, None, None, None, None, None),
    ]
    console = Console(width=200, color_system=None)
    with console.capture() as captured:
        console.print(cli.job_table(jobs, now=1000.0 + 7300))
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in captured.get().splitlines() if "raysub" in line]
    assert rows == [
        ["raysubmit_1", "my_run", "grpo", "org/[model]", "RUNNING", "2 h"],
        ["raysubmit_2", "–", "–", "–", "PENDING", "–"],
    ]


@pytest.mark.parametrize(
    ("elapsed_s", "text"),
    [
        (-3, "0 s"),
        (0.4, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3599, "59 min"),
        (86399, "23 h"),
        (200000, "2 d"),
    ],
)
def test_age(elapsed_s, text):
    assert cli.age(5000.0, 5000.0 + elapsed_s) == text
