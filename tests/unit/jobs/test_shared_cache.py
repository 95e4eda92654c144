"""Rows that one run has read and tokenised are there for the next one."""

import json
from types import SimpleNamespace

import pytest
from datasets.packaged_modules.json.json import Json
from transformers import PreTrainedTokenizerFast

from rlflow.data.rows import Rows
from rlflow.jobs.adapters import find_run
from rlflow.jobs.checks import read_rows
from rlflow.jobs.preference import reference_path
from rlflow.observe.run_dir import RunDirectory
from rlflow.spec.load import parse_job
from tests.integration.job_runs import MODEL, grpo_spec, sft_spec


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with rows of conversations and of pairs."""
    monkeypatch.chdir(tmp_path)
    ask = [{"role": "user", "content": "1+1"}]
    rows = [{"messages": [*ask, {"role": "assistant", "content": f"{n}"}], "rejected_response": f"{n}-"} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def made(monkeypatch):
    """What was tokenised, and which files were read, since this was last emptied."""
    calls: list[str] = []
    tokenise, read = PreTrainedTokenizerFast.__call__, Json._generate_tables

    def counted(self, *args, **kwargs):
        calls.append("tokenised")
        return tokenise(self, *args, **kwargs)

    def counted_read(self, *args, **kwargs):
        calls.append("read")
        return read(self, *args, **kwargs)

    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", counted)
    monkeypatch.setattr(Json, "_generate_tables", counted_read)
    return calls


def prepare(name, spec, **data):
    """Read and tokenise a job's rows, as before a run of this name."""
    fields = {"sources": ["rows.jsonl"], "max_prompt_tokens": 32, "max_tokens": 48, **data}
    read_rows([parse_job({**spec, "run": {"name": name, "dir": "runs", "device": "cpu"}, "data": fields})])


def dpo_spec():
    kept = {key: value for key, value in sft_spec().items() if key in ("learner", "model", "steps", "batch_size")}
    return {"kind": "dpo", **kept}


@pytest.mark.parametrize("spec", [sft_spec(), grpo_spec(), dpo_spec()], ids=["sft", "grpo", "dpo"])
def test_a_second_run_neither_reads_nor_tokenises_again(folder, made, spec):
    prepare("first", spec)
    assert {"read", "tokenised"} <= set(made)
    made.clear()
    prepare("second", spec)
    assert made == []
    assert list((folder / "runs" / ".cache").glob("*.arrow"))
    assert not (folder / "runs" / "first").exists(), "nothing of it is the run's own"


def test_another_setting_or_tokenizer_tokenises_again(folder, made):
    prepare("first", sft_spec())
    made.clear()
    prepare("longer", sft_spec(), max_tokens=64)
    assert made and set(made) == {"tokenised"}
    made.clear()
    characters = MODEL["random"]["characters"] + "%"
    prepare("other", sft_spec(model={**MODEL, "random": {**MODEL["random"], "characters": characters}}))
    assert made and set(made) == {"tokenised"}


def test_changed_rows_are_read_and_tokenised_again(folder, made):
    prepare("first", sft_spec())
    made.clear()
    (folder / "rows.jsonl").write_text((folder / "rows.jsonl").read_text().replace("1+1", "1+12"))
    prepare("second", sft_spec())
    assert {"read", "tokenised"} <= set(made)


def test_windows_of_a_stream_are_the_run_s_own(folder):
    prepare("stream", sft_spec(), streaming={"buffer_rows": 2})
    assert list((folder / "runs" / "stream" / "data").glob("stream-*/*.arrow"))
    assert not list((folder / "runs" / ".cache").glob("stream-*"))


def test_what_another_user_has_made_is_left_alone(folder, monkeypatch):
    (folder / "runs" / ".cache").mkdir(parents=True)
    monkeypatch.setattr("rlflow.jobs.prepare.os.access", lambda path, mode: False)
    prepare("first", sft_spec())
    assert list((folder / "runs" / "first" / "data").glob("conversations-*.arrow"))
    assert not list((folder / "runs" / ".cache").iterdir())


def test_the_cache_is_no_run(folder):
    prepare("first", sft_spec())
    assert find_run(".cache", folder / "runs") is None
    assert not RunDirectory(folder / "runs" / ".cache").exists


def test_a_part_s_fingerprint_is_that_of_its_content(folder):
    from rlflow.data.sources import load_sources
    from rlflow.spec.data import DataSpec

    spec = DataSpec(sources=("rows.jsonl",))
    rows = [load_sources(spec, folder / name) for name in ("one", "two")]
    assert rows[0].fingerprint() == rows[1].fingerprint()
    assert Rows(rows[0].parts, rows[0].positions[::-1]).fingerprint() != rows[1].fingerprint()


def test_the_reference_of_a_run_is_no_other_run_s(folder):
    rows = SimpleNamespace(path=folder / "runs" / ".cache" / "pairs-1.arrow")
    paths = [reference_path(RunDirectory(folder / "runs" / name), rows) for name in ("one", "two")]
    assert paths == [str(folder / "runs" / name / "data" / "pairs-1.reference.arrow") for name in ("one", "two")]
