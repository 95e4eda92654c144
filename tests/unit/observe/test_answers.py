import json

from rlflow.observe.answers import AnswerFiles, errors_path


def answer(row_id, sample=None, text="a"):
    record = {"messages": [{"role": "assistant", "content": text}], "row_id": row_id, "prompt_tokens": 2, "completion_tokens": 3}
    return record if sample is None else {**record, "sample": sample}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def opened(tmp_path, samples=1):
    return AnswerFiles(tmp_path / "out.jsonl", samples)


def test_answers_and_errors_are_counted_and_remembered(tmp_path):
    files = opened(tmp_path)
    files.write([answer("a", text="ü")], [])
    files.write([], [{"row_id": "b", "error": "bad"}])
    files.write([], [{"row_id": "c", "dropped": "truncated", "completion_tokens": 4}])
    totals = {"answers": 1, "failed": 1, "dropped": 1, "prompt_tokens": 2, "completion_tokens": 7}
    assert files.totals == totals
    files.close()
    again = opened(tmp_path)
    assert again.done == {"a", "b", "c"} and +again.totals == totals
    assert "ü" in files.output.read_text()


def test_a_prompt_counts_once_however_many_answers_it_has(tmp_path):
    files = opened(tmp_path, samples=3)
    files.write(
        [answer("a", 1), answer("a", 2)],
        [{"row_id": "a", "sample": 0, "dropped": "truncated", "prompt_tokens": 2, "completion_tokens": 3}],
    )
    totals = {"answers": 2, "dropped": 1, "prompt_tokens": 2, "completion_tokens": 9}
    assert files.totals == totals
    files.close()
    assert +opened(tmp_path, samples=3).totals == totals


def test_a_torn_line_is_taken_out_and_its_row_done_again(tmp_path):
    files = opened(tmp_path)
    files.write([answer("a")], [])
    files.write([answer("b")], [])
    files.close()
    whole = files.output.read_bytes()
    for cut in range(len(whole) // 2 + 1, len(whole)):
        files.output.write_bytes(whole[:cut])
        again = opened(tmp_path)
        assert again.done == {"a"}
        again.write([answer("b")], [])
        again.close()
        assert files.output.read_bytes() == whole


def test_a_line_of_zeros_in_the_middle_costs_only_its_row(tmp_path):
    lines_ = [json.dumps(answer("a")), "\0" * 20, json.dumps(answer("c"))]
    (tmp_path / "out.jsonl").write_text("\n".join(lines_) + "\n")
    assert opened(tmp_path).done == {"a", "c"}
    assert [row["row_id"] for row in lines(tmp_path / "out.jsonl")] == ["a", "c"]


def test_a_row_with_some_of_its_samples_is_not_done_and_leaves_no_trace(tmp_path):
    files = opened(tmp_path, samples=3)
    files.write([answer("a", 0), answer("a", 2)], [{"row_id": "a", "sample": 1, "dropped": "truncated"}])
    files.write([answer("b", 0)], [{"row_id": "b", "sample": 1, "dropped": "truncated"}])  # a third one is missing
    files.close()
    again = opened(tmp_path, samples=3)
    assert again.done == {"a"}
    assert {row["row_id"] for path in (again.output, again.errors) for row in lines(path)} == {"a"}
    assert again.totals["answers"] == 2 and again.totals["dropped"] == 1


def test_a_record_without_a_sample_stands_for_its_whole_row(tmp_path):
    files = opened(tmp_path, samples=4)
    files.write([], [{"row_id": "a", "error": "bad"}])
    files.close()
    assert opened(tmp_path, samples=4).done == {"a"}


def test_without_errors_there_is_no_file_of_them(tmp_path):
    files = opened(tmp_path)
    files.write([answer("a")], [])
    files.close()
    assert not errors_path(files.output).exists()
    assert errors_path(files.output).name == "out.errors.jsonl"
