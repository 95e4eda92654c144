import json
import math

import pytest

from rlflow.observe.durable import json_line, write_json_lines, write_text


def test_replacing_leaves_nothing_beside(tmp_path):
    write_text(tmp_path / "a", "old")
    write_text(tmp_path / "a", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "new")]


def test_a_failed_write_keeps_the_old_content(tmp_path):
    write_json_lines(tmp_path / "a", [{"x": 1}])
    with pytest.raises(TypeError):
        write_json_lines(tmp_path / "a", [{"x": 2}, {"x": object()}])
    assert (tmp_path / "a").read_text() == '{"x": 1}\n'


def test_non_finite_numbers_become_null_at_any_depth():
    assert json_line({"a": [math.nan, {"b": -math.inf}], "c": (1, 2.5)}) == '{"a": [null, {"b": null}], "c": [1, 2.5]}\n'


def test_text_is_kept_whatever_it_holds(tmp_path):
    texts = ["日本語", "line\u2028separator", "half a pair \ud83d"]
    write_json_lines(tmp_path / "a", [{"text": text} for text in texts])
    written = (tmp_path / "a").read_text(encoding="utf-8")
    assert "日本語" in written
    assert [json.loads(line)["text"] for line in written.split("\n") if line] == texts
