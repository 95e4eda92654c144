import json

import pytest

from rlflow.data.raw_rows import load_raw_rows
from rlflow.errors import DataError
from rlflow.spec.data import DataSpec

GOOD = {"messages": [{"role": "user", "content": "a"}], "n": 1}


def load(tmp_path, *lines, **changes):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    source = {"type": "file", "path": str(path), **changes}
    return load_raw_rows(DataSpec.model_validate({"sources": [source], "shuffle": False}), tmp_path / "cache")


def test_bad_rows_are_errors_only_when_they_are_asked_for(tmp_path):
    rows = load(tmp_path, "not json\n", "\n", GOOD, '["a list"]\n', {"messages": "text"}, {"n": 2}, GOOD)
    assert len(rows) == 6
    for index, reason in {0: "not valid JSON", 2: "expected a JSON object", 3: "found str 'text'", 4: "found nothing"}.items():
        with pytest.raises(DataError, match=reason):
            rows[index]
    assert rows[5].messages == GOOD["messages"] and rows[5].columns == {"n": 1}
    assert rows[5].origin.endswith("rows.jsonl, row 6")


def test_rows_keep_exactly_their_own_columns(tmp_path):
    rows = load(tmp_path, GOOD, GOOD | {"meta": {"a": "ü"}}, GOOD | {"meta": {"b": [1, None]}})
    assert [row.columns for row in rows] == [{"n": 1}, {"n": 1, "meta": {"a": "ü"}}, {"n": 1, "meta": {"b": [1, None]}}]


def test_columns_are_renamed(tmp_path):
    rows = load(tmp_path, {"q": "hello", "n": 1}, columns={"q": "query"})
    assert rows[0].messages == [{"role": "user", "content": "hello"}]


def test_row_ids_tell_repeats_apart(tmp_path):
    ids = load(tmp_path, GOOD, GOOD, sample=5).row_ids()
    assert [row_id.rpartition(":")[2] for row_id in ids] == ["1", "2", "1~2", "2~2", "1~3"]


def test_a_file_without_any_row_ends_at_once(tmp_path):
    with pytest.raises(DataError, match=r"rows\.jsonl: no line of it is a JSON object"):
        load(tmp_path, "nothing\n")


def test_other_formats_are_read_too(tmp_path):
    (tmp_path / "rows.csv").write_text("query,n\nhello,1\n")
    rows = load_raw_rows(DataSpec.model_validate({"sources": [str(tmp_path / "rows.csv")]}), tmp_path / "cache")
    assert rows[0].messages == [{"role": "user", "content": "hello"}]
    assert rows[0].columns == {"query": "hello", "n": 1}
