import json

import numpy as np
import pytest
from datasets import Dataset

from rlflow.data.formats import detect_training_format
from rlflow.data.loss_weights import encode_conversation
from rlflow.data.stream import RowStream, open_stream
from rlflow.data.streamed_conversations import StreamedConversations, forget_windows
from rlflow.data.windows import Windows
from rlflow.errors import DataError
from rlflow.spec.data import DataSpec


def rows_from(first, count):
    return [{"query": f"{number}+1", "response": str(number + 1)} for number in range(first, first + count)]


@pytest.fixture
def files(tmp_path):
    """A file of 25 rows from 0 on, and one of 10 from 100 on."""
    paths = []
    for name, first, count in (("a.jsonl", 0, 25), ("b.jsonl", 100, 10)):
        paths.append(tmp_path / name)
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in rows_from(first, count)))
    return [str(path) for path in paths]


def open_(tmp_path, *sources, buffer_rows=10, **fields):
    spec = DataSpec(sources=sources, streaming={"buffer_rows": buffer_rows}, **fields)
    return *open_stream(spec, tmp_path / "cache", detect_training_format), spec


def numbers(rows):
    return [int(rows[index].columns["query"].removesuffix("+1")) for index in range(len(rows))]


def test_windows_hold_every_row_of_a_pass_once_and_shuffle_it(tmp_path, files):
    stream, _, _ = open_(tmp_path, files[0], buffer_rows=5)
    windows = [numbers(stream.read(number)) for number in range(10)]
    assert [sorted(window) for window in windows] == [list(range(n, n + 5)) for n in (0, 5, 10, 15, 20)] * 2
    assert windows[0] != sorted(windows[0]) and windows[0] != windows[5], "every window has an order of its own"
    assert stream.passes == 1
    in_order, _, _ = open_(tmp_path, files[0], shuffle=False)
    assert numbers(in_order.read(0)) == list(range(10))


def test_sources_follow_each_other_pass_after_pass_and_rows_keep_their_names(tmp_path, files):
    stream, _, _ = open_(tmp_path, *files, buffer_rows=40, shuffle=False)
    rows = stream.read(0)
    assert numbers(rows) == [*range(25), *range(100, 110), *range(5)]
    assert [rows.origin(index) for index in (24, 25, 36)] == [f"{files[0]}, row 25", f"{files[1]}, row 1", f"{files[0]}, row 2"]
    assert rows.source(30) == 1


def test_a_mix_draws_from_sources_by_weight_and_starts_each_anew(tmp_path, files):
    stream, _, _ = open_(tmp_path, *files, mix={"weights": (1, 3)}, buffer_rows=400)
    drawn = numbers(stream.read(0))
    second = [number for number in drawn if number >= 100]
    assert 260 < len(second) < 340
    assert {second.count(number) for number in range(100, 110)} <= {len(second) // 10, len(second) // 10 + 1}


@pytest.mark.parametrize("fields", [{}, {"mix": {"weights": (1, 2)}}, {"held_out": 3, "mix": {"weights": (5, 1)}}])
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_stream_goes_on_from_any_state(tmp_path, files, fields, suffix):
    if suffix != "jsonl":
        for number, (first, count) in enumerate(((0, 25), (100, 10))):
            files[number] = str(tmp_path / f"{number}.{suffix}")
            table = Dataset.from_list(rows_from(first, count))
            table.to_csv(files[number]) if suffix == "csv" else table.to_parquet(files[number])
    stream, _, _ = open_(tmp_path, *files, **fields)
    states, windows = [], []
    for number in range(8):
        states.append(json.loads(json.dumps(stream.state())))
        windows.append(numbers(stream.read(number)))
    for number in (3, 0, 7):
        other, _, _ = open_(tmp_path, *files, **fields)
        other.restore(states[number])
        assert [numbers(other.read(n)) for n in range(number, 8)] == windows[number:]
        stream.restore(states[number])
        assert numbers(stream.read(number)) == windows[number]


def test_first_rows_are_held_out_of_every_pass(tmp_path, files):
    stream, held_out, _ = open_(tmp_path, *files, held_out=5, buffer_rows=60, shuffle=False)
    assert numbers(held_out) == [0, 1, 2, 100, 101], "spread over the sources"
    assert numbers(stream.read(0)) == [*range(3, 25), *range(102, 110)] * 2
    whole = {"type": "file", "path": files[1], "held_out": "all"}
    stream, held_out, _ = open_(tmp_path, {"type": "file", "path": files[0], "held_out": 1}, whole, shuffle=False)
    assert numbers(held_out) == [0, *range(100, 110)]
    assert numbers(stream.read(0)) == list(range(1, 11))


def test_columns_are_renamed_and_a_folder_is_one_source(tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    for name, first in (("b.jsonl", 10), ("a.parquet", 0)):
        table = Dataset.from_list([{"q": f"{n}+1", "a": str(n + 1)} for n in range(first, first + 4)])
        table.to_json(folder / name) if name.endswith("jsonl") else table.to_parquet(folder / name)
    source = {"type": "file", "path": str(folder), "columns": {"q": "query", "a": "response"}}
    stream, _, _ = open_(tmp_path, source, buffer_rows=8, shuffle=False)
    rows = stream.read(0)
    assert numbers(rows) == [0, 1, 2, 3, 10, 11, 12, 13]
    assert rows[7].messages[1] == {"role": "assistant", "content": "14"}


def test_generated_rows_are_streamed_too(tmp_path):
    source = {"type": "reasoning_gym", "task": "chain_sum", "size": 6}
    stream, held_out, _ = open_(tmp_path, source, held_out=2, buffer_rows=4, shuffle=False)
    first, again = (stream.read(number).read(range(4)) for number in range(2))
    assert first == again and len(held_out) == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sources": ("{a}",), "held_out": 26}, r"data.sources\[0\]: has 1 rows fewer than are to be held out"),
        ({"sources": ("{a}",), "held_out": 25}, r"a.jsonl: no row is left to train on"),
        ({"sources": ({"type": "file", "path": "{a}", "held_out": "all"},)}, "data.held_out: no row is left to train on"),
        ({"sources": ("nothing.jsonl",)}, r"data.sources\[0\].path: there is no file nothing.jsonl"),
        (
            {"sources": ({"type": "file", "path": "{a}", "columns": {"q": "query"}},)},
            r"data.sources\[0\].columns: .*a.jsonl has no column q; it has query, response",
        ),
        (
            {"sources": ({"type": "file", "path": "{a}", "columns": {"query": "x"}},)},
            "a.jsonl, row 1: ",
        ),
    ],
)
def test_what_cannot_be_streamed_is_said(tmp_path, files, fields, message):
    text = json.dumps(fields).replace("{a}", files[0])
    with pytest.raises(DataError, match=message):
        stream, _, _ = open_(tmp_path, *json.loads(text).pop("sources"), **{k: v for k, v in fields.items() if k != "sources"})
        stream.read(0)


def test_a_file_that_breaks_off_is_named_with_the_row(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("query,response\n" + "1+1,2\n" * 20_000 + "1+1,2,3,4\n")
    stream, _, _ = open_(tmp_path, str(path), buffer_rows=9_000)
    stream.read(0)
    with pytest.raises(DataError, match=r"rows.csv: cannot be read after row \d0000: Error tokenizing data"):
        for window in (1, 2):
            stream.read(window)


@pytest.mark.parametrize("good", [3, 11_000])
def test_the_bad_row_of_a_json_file_is_named(tmp_path, good):
    """At the beginning, or after the first 10 MB."""
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"query": "1+1", "response": "{1000 * "2"}"}}\n' * good + '{"query": \n')
    with pytest.raises(DataError, match=rf"rows.jsonl, row {good + 1}: not valid JSON"):
        stream, _, _ = open_(tmp_path, str(path), buffer_rows=good + 1)
        stream.read(0)


def test_columns_that_are_not_trained_on_may_hold_anything(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"query": "1", "response": "2", "x": x}) + "\n" for x in ({"a": 1}, {"b": [2]}, None)))
    stream, _, _ = open_(tmp_path, str(path), buffer_rows=3)
    assert [len(messages) for messages in stream.read(0).read(range(3))] == [2, 2, 2]


def test_held_out_rows_may_fill_several_files(tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_from(10 * number, 3)))
    stream, held_out, _ = open_(tmp_path, str(folder), held_out=7, buffer_rows=5, shuffle=False)
    assert numbers(held_out) == [0, 1, 2, 10, 11, 12, 20]
    assert numbers(stream.read(0)) == [21, 22, 30, 31, 32]


def test_a_source_that_was_not_drawn_since_it_was_restored_keeps_its_place(tmp_path, files):
    stream, _, _ = open_(tmp_path, *files, mix={"weights": (1, 1e-9)}, buffer_rows=5)
    second = stream._chains[1]
    assert [second.draw().number for _ in range(4)] == [1, 2, 3, 4]
    for _ in range(3):
        stream.restore(json.loads(json.dumps(stream.state())))
        stream.read(0)
    assert second.draw().number == 5


def streamed(tmp_path, characters, *sources, **fields):
    stream, _, spec = open_(tmp_path, *sources, **fields)
    return StreamedConversations(stream, characters, spec, tmp_path / "tokens"), spec


def content(conversations, rows):
    return [tuple(conversations[row][0].tolist()) for row in rows]


def test_conversations_are_those_of_the_rows(tmp_path, files, characters):
    conversations, spec = streamed(tmp_path, characters, *files, shuffle=False)
    rows = conversations.rows(0, 30)
    assert rows == list(range(30))
    for row, number in ((0, 0), (24, 24), (25, 100)):
        messages = [{"role": "user", "content": f"{number}+1"}, {"role": "assistant", "content": str(number + 1)}]
        ids, weights = encode_conversation(characters, messages, spec)
        found_ids, found_weights = conversations[row]
        assert (found_ids.tolist(), found_weights.tolist()) == (ids, weights)
        assert conversations.lengths[row] == len(ids)
        assert conversations.loss_weight_sums[row] == sum(weights)


def test_a_rank_reads_the_files_that_are_there(tmp_path, files, characters):
    conversations, _ = streamed(tmp_path, characters, *files)
    rank = Windows(conversations.path)
    for start in range(0, 60, 12):
        rows = conversations.rows(start, 12)
        assert content(rank, rows) == content(conversations, rows)
        assert rank.label(rows[0]) == 0.0


def test_every_window_is_read_once_and_ahead(tmp_path, files, characters, monkeypatch):
    conversations, _ = streamed(tmp_path, characters, *files)
    reads, read = [], RowStream.read
    monkeypatch.setattr(RowStream, "read", lambda stream, window: reads.append(window) or read(stream, window))
    for start in range(0, 40, 4):
        conversations.rows(start, 4)
    assert conversations._ahead is not None
    assert conversations._ahead[1].result() == 50
    assert reads == [1, 2, 3, 4]


def test_windows_of_other_rows_are_not_used(tmp_path, files, characters):
    conversations, _ = streamed(tmp_path, characters, files[0])
    self_cognition = {"type": "self_cognition", "author": "A"}
    folders = {streamed(tmp_path, characters, self_cognition, model_name=name)[0].path for name in "XY"}
    assert len(folders) == 2
    forget_windows(tmp_path / "tokens")
    assert not conversations.path.exists()


def test_windows_that_were_trained_on_are_removed(tmp_path, files, characters):
    conversations, _ = streamed(tmp_path, characters, *files)
    conversations.rows(95, 10)
    starts = sorted(int(file.stem) for file in conversations.path.glob("*.arrow"))
    assert starts[0] == 90 and starts[-1] <= 110


def test_a_run_goes_on_from_any_row(tmp_path, files, characters):
    conversations, _ = streamed(tmp_path, characters, *files)
    seen = []
    for start in range(0, 120, 12):
        seen += content(conversations, conversations.rows(start, 12))
    assert content(conversations, conversations.rows(24, 30)) == seen[24:54], "as after a rank's death"
    again, _ = streamed(tmp_path, characters, *files)
    assert content(again, again.rows(36, 40)) == seen[36:76], "as after the driver's"
    for file in again.path.glob("*.arrow"):
        file.unlink()
    third, _ = streamed(tmp_path, characters, *files)
    assert content(third, third.rows(84, 36)) == seen[84:], "what was removed is written again"


def test_epochs_are_passes(tmp_path, files, characters):
    conversations, _ = streamed(tmp_path, characters, files[0], buffer_rows=5)
    conversations.rows(0, 60)
    assert [conversations.epoch(cursor) for cursor in (0, 24, 30, 55)] == [0, 0, 1, 2]


def test_dropped_and_split_rows_shift_those_after_them(tmp_path, characters):
    path = tmp_path / "rows.jsonl"
    lengths = [3, 50, 4, 60, 5] * 4
    path.write_text("".join(json.dumps({"query": "1", "response": "2" * length}) + "\n" for length in lengths))
    conversations, _ = streamed(tmp_path, characters, str(path), buffer_rows=5, max_tokens=40, overlong="drop", shuffle=False)
    rows = conversations.rows(0, 12)
    assert [int(weights.sum()) for _, weights in map(conversations.__getitem__, rows)] == [4, 5, 6] * 4


def test_a_bad_row_is_named_when_it_is_reached(tmp_path, characters):
    path = tmp_path / "rows.jsonl"
    rows = rows_from(0, 30)
    rows[22]["query"] = None
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    conversations, _ = streamed(tmp_path, characters, str(path), shuffle=False)
    assert conversations.rows(0, 20) == list(range(20))
    for _ in range(2):
        with pytest.raises(DataError, match=r"rows.jsonl, row 23: "):
            conversations.rows(20, 5)


def test_the_first_window_is_checked_at_once(tmp_path, characters):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_from(0, 3)))
    with pytest.raises(DataError, match=r"no row of .*rows.jsonl is within 2 tokens"):
        streamed(tmp_path, characters, str(path), max_tokens=2, overlong="drop")


def test_a_window_without_a_row_is_left_out(tmp_path, characters):
    path = tmp_path / "rows.jsonl"
    lengths = [50] * 5 + [3] * 5 + [60] * 10 + [4] * 5
    path.write_text("".join(json.dumps({"query": "1", "response": "2" * length}) + "\n" for length in lengths))
    conversations, _ = streamed(tmp_path, characters, str(path), buffer_rows=5, max_tokens=40, overlong="drop", shuffle=False)
    rows = conversations.rows(0, 15)
    assert [int(weights.sum()) for _, weights in map(conversations.__getitem__, rows)] == [4] * 5 + [5] * 5 + [4] * 5


def test_shuffling_does_not_depend_on_numpy_global_state(tmp_path, files):
    np.random.seed(1)
    one = numbers(open_(tmp_path, files[0])[0].read(0))
    np.random.seed(2)
    assert numbers(open_(tmp_path, files[0])[0].read(0)) == one
