"""A job on the answers of an earlier run: where they are found, and what is said if they are not."""

import json

import pytest

from rlflow.errors import DataError, SpecError
from rlflow.jobs.checks import check_specs, read_rows
from rlflow.jobs.earlier_runs import output_path, with_answers
from rlflow.jobs.prepare import load_questions, load_rows
from rlflow.observe.run_dir import RunDirectory
from rlflow.spec.load import parse_job, resolved
from tests.integration.job_runs import MODEL, sft_spec


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "questions.jsonl").write_text('{"query": "1+1"}\n')
    return tmp_path


def infer(output=None):
    spec = {
        "kind": "infer",
        "run": {"name": "answers"},
        "model": MODEL,
        "infer": {"output": output},
        "rollout": {"max_completion_tokens": 32},
    }
    return parse_job({**spec, "data": {"sources": ["questions.jsonl"], "max_prompt_tokens": 32}})


def reader(kind="sft", **changes):
    data = {"sources": [{"type": "run", "from_run": "answers", "sample": 3}], "max_tokens": 64}
    return parse_job(sft_spec(run={"name": "student"}, data=data, **changes))


@pytest.mark.parametrize("output", [None, "elsewhere.jsonl"])
def test_the_rows_are_the_answers_that_the_run_wrote(output):
    job = infer(output)
    RunDirectory("runs/answers").create("", resolved(job))
    messages = [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]
    output_path(job).write_text(json.dumps({"messages": messages, "row_id": "a", "finish_reason": "stop"}) + "\n")
    rows, _ = load_rows(reader(), RunDirectory("runs/student"))
    assert len(rows) == 3, "sample repeats rows of this source as of any"
    assert rows[0].messages == messages
    assert output_path(job).name in rows[0].origin


def test_without_them_the_run_is_named():
    with pytest.raises(SpecError, match=r"data.sources\[0\].from_run: answers has written no answers in runs; run that job"):
        with_answers(reader())
    with pytest.raises(SpecError, match=r"data.sources\[0\].from_run: answers has written"):
        check_specs([reader()])


def test_a_chain_waits_for_them():
    jobs = [infer(), reader()]
    check_specs(jobs)
    asked, answers = read_rows(jobs)
    assert answers is None and asked is not None and len(asked[0]) == 1


def test_rows_that_have_changed_are_not_taken_for_those_that_the_run_knows(folder):
    job, run = infer(), RunDirectory("runs/answers")
    run.create("", resolved(job))
    rows = load_questions(job, run)
    run.write_rows(rows.digests())
    assert load_questions(job, run).row_ids() == ["questions.jsonl:1"]
    (folder / "questions.jsonl").write_text('{"query": "0"}\n{"query": "1+1"}\n')
    with pytest.raises(DataError, match=r"data.sources: questions.jsonl has changed since .*answers began"):
        read_rows([job])


def test_an_earlier_job_of_another_kind_writes_none():
    warm = parse_job(sft_spec(run={"name": "answers"}, data={"sources": ["reasoning_gym:chain_sum"], "max_tokens": 64}))
    with pytest.raises(SpecError, match=r"student: data.sources\[0\].from_run: answers is a job of kind sft, not infer"):
        check_specs([warm, reader()])


def test_a_reward_model_comes_from_a_job_that_trains_one():
    warm = parse_job(sft_spec(run={"name": "warm"}, data={"sources": ["reasoning_gym:chain_sum"], "max_tokens": 64}))
    rewarded = infer().model_copy(update={"rewards": parse_job({
        **resolved(infer()), "rewards": [{"type": "model", "from_run": "warm"}]
    }).rewards})  # fmt: skip
    with pytest.raises(SpecError, match=r"answers: rewards\[0\].from_run: warm is a job of kind sft, not rm"):
        check_specs([warm, rewarded])
