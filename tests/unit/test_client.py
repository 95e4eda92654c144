from pathlib import Path

import pytest

from rlflow import client
from rlflow.errors import SpecError, UserError
from rlflow.spec.load import job_metadata, load_job, spec_hash

SPEC = """
kind: sft
run: {{name: my_run, dir: {dir}}}
model: {{path: org/some-model}}
data: {{sources: [rows.jsonl]}}
steps: 10
"""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", *client.ADDRESS_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def spec_path(tmp_path):
    path = tmp_path / "my spec.yaml"
    path.write_text(SPEC.format(dir="/shared/runs"))
    return path


def test_address_given_wins_over_the_environment(monkeypatch):
    assert client.resolve_address(None) == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert client.resolve_address(None) == "10.0.0.1:6379"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://10.0.0.1:8265")
    assert client.resolve_address(None) == "http://10.0.0.1:8265"
    assert client.resolve_address("http://other:8265") == "http://other:8265"


def test_token_is_found_where_ray_looks_for_it(monkeypatch, tmp_path):
    assert client.find_token() is None
    (tmp_path / "home" / ".ray").mkdir(parents=True)
    (tmp_path / "home" / ".ray" / "auth_token").write_text("from home\n")
    assert client.find_token() == "from home"
    (tmp_path / "token").write_text("from path\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert client.find_token() == "from path"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "from variable")
    assert client.find_token() == "from variable"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert client.find_token() is None


def test_a_token_file_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/no/such/token")
    with pytest.raises(UserError, match="RAY_AUTH_TOKEN_PATH: there is no file /no/such/token"):
        client.find_token()


def test_the_entrypoint_names_specs_as_they_lie_in_the_upload(spec_path, tmp_path):
    nested = tmp_path / "specs" / "b.yaml"
    command = client.entrypoint([spec_path, nested], tmp_path, ["run.name=x y", "steps=5"])
    assert command == "python -m rlflow.jobs.run 'my spec.yaml' specs/b.yaml 'run.name=x y' steps=5"
    assert client.entrypoint(["specs/b.yaml"], ".", []) == "python -m rlflow.jobs.run specs/b.yaml"


def test_a_spec_outside_the_upload_is_refused(spec_path, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(SpecError, match=r"my spec\.yaml: lies outside .*elsewhere.*--working-dir"):
        client.submit([spec_path], working_dir=tmp_path / "elsewhere")


def test_metadata_are_strings_of_all_specs(spec_path):
    jobs = [load_job(spec_path), load_job(spec_path, ["run.name=second"])]
    metadata = job_metadata(jobs)
    assert metadata == {
        "run": "my_run, second",
        "algorithm": "sft, sft",
        "model": "org/some-model, org/some-model",
        "spec_hash": f"{spec_hash(jobs[0])}, {spec_hash(jobs[1])}",
    }


def test_mistakes_are_found_before_anything_is_sent(spec_path):
    with pytest.raises(SpecError, match=r"my spec\.yaml: stps: unknown field; did you mean steps\?"):
        client.submit([spec_path], overrides=["stps=5"])
    with pytest.raises(SpecError, match=r"my spec\.yaml: run\.dir: 'runs' is relative.*absolute path"):
        client.submit([spec_path], overrides=["run.dir=runs"])
    with pytest.raises(UserError, match="--working-dir: there is no directory /no/such"):
        client.submit_entrypoint("true", working_dir=Path("/no/such"))


@pytest.mark.parametrize(
    ("text", "error", "line"),
    [
        ("Request failed with status code 404: Job j1 does not exist.", UserError, "there is no job j1"),
        (
            "Traceback\nValueError: Job with submission_id j1 already exists. Use.\n.\n.",
            UserError,
            "a job j1 already",
        ),
    ],
)
def test_answers_of_the_server_become_one_line(text, error, line):
    raised = client._server_error("http://h:1", "j1", text)
    assert type(raised) is error and line in str(raised) and "\n" not in str(raised)


def test_other_answers_of_the_server_keep_their_last_line():
    raised = client._server_error("http://h:1", None, "Traceback\n  File x\nOSError: disk full.\n.\n.")
    assert str(raised) == "http://h:1: OSError: disk full" and not isinstance(raised, UserError)
