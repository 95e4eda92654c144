import pytest

from rlflow.data.sources import load_sources
from rlflow.errors import DataError
from rlflow.spec.data import DataSpec


def load(tmp_path, **fields):
    source = {"type": "self_cognition", "name": "Flow", "author": {"zh": "溪流", "en": "Brook"}} | fields
    return load_sources(DataSpec(sources=(source,)), tmp_path / "cache")


def test_the_built_in_rows_name_model_and_author_in_both_languages(tmp_path):
    rows = load(tmp_path)
    by_language = {tag: [row for row in rows if row.columns["tag"] == tag] for tag in ("en", "zh")}
    assert [len(found) for found in by_language.values()] == [56, 56]
    for tag, author, other in (("en", "Brook", "溪流"), ("zh", "溪流", "Brook")):
        for row in by_language[tag]:
            question, answer = (message["content"] for message in row.messages)
            assert "{{" not in question + answer and other not in question + answer
            assert "Flow" in answer and author in answer
    assert len({row.messages[0]["content"] for row in rows}) == 112


@pytest.mark.parametrize(
    ("variant", "behind", "before"),
    [("default", "", ""), ("qwen3", " /no_think", "<think>\n\n</think>\n\n"), ("empty_think", "", "<think>\n\n</think>\n\n")],
)
def test_variants_for_models_that_think(tmp_path, variant, behind, before):
    question, answer = (message["content"] for message in load(tmp_path, variant=variant)[0].messages)
    assert question == "Who are you?" + behind
    assert answer == before + "I am Flow, an AI assistant created by Brook."


def test_rows_of_a_file_are_repeated_like_those_of_any_source(tmp_path, write_jsonl):
    path = write_jsonl([{"query": "{{NAME}}?", "response": "by {{AUTHOR}}", "tag": "zh"}, {"query": "b", "response": "c"}])
    rows = load(tmp_path, path=path, sample=5)
    assert [message["content"] for message in rows[0].messages] == ["Flow?", "by 溪流"]
    assert len(rows) == 5


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query": "a", "response": "b"}, r"rows.jsonl: no response has {{NAME}} or {{AUTHOR}} in it"),
        ({"query": "a", "answer": "{{NAME}}"}, "needs the columns query and response .*response is missing"),
    ],
)
def test_rows_that_would_teach_nothing_are_refused(tmp_path, write_jsonl, row, message):
    with pytest.raises(DataError, match=message):
        load(tmp_path, path=write_jsonl([row]))


def test_a_bad_row_is_named_as_in_any_file(tmp_path, write_jsonl):
    path = write_jsonl([{"query": "a", "response": "{{NAME}}"}, {"query": "", "response": "{{NAME}}"}])
    with pytest.raises(DataError, match=r"rows.jsonl, row 2: column query is empty"):
        load(tmp_path, path=path).read([0, 1])
