import csv
import json
import os
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from datasets import Dataset

from rlflow.data.files import load_file
from rlflow.data.formats import detect_training_format
from rlflow.data.sources import load_sources
from rlflow.errors import DataError, SpecError
from rlflow.spec.data import DataSpec


def load(tmp_path, *sources, **fields):
    return load_sources(DataSpec(sources=sources, **fields), tmp_path / "cache")


def numbered(count, offset=0):
    return [{"query": f"q{number + offset}", "response": "r", "number": number + offset} for number in range(count)]


def test_rows_keep_their_other_columns(tmp_path, write_jsonl):
    path = write_jsonl([{"messages": [{"role": "user", "content": "hi"}], "solution": "4", "level": 2}])
    row = load(tmp_path, path)[0]
    assert row.messages == [{"role": "user", "content": "hi"}]
    assert row.columns == {"solution": "4", "level": 2}
    assert row.origin == f"{path}, row 1"


def test_every_file_type_gives_the_same_rows(tmp_path, write_jsonl):
    rows = numbered(3)
    paths = [
        write_jsonl(rows),
        str(tmp_path / "a.csv"),
        str(tmp_path / "a.parquet"),
        str(tmp_path / "a.json"),
    ]
    with open(paths[1], "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    Dataset.from_list(rows).to_parquet(paths[2])
    Dataset.from_list(rows).to_json(paths[3], lines=False)
    contents = [[(row.messages, row.columns) for row in load(tmp_path, path)] for path in paths]
    assert all(content == contents[0] for content in contents)


def test_a_directory_is_read_in_order_of_its_files(tmp_path, write_jsonl):
    (tmp_path / "rows").mkdir()
    write_jsonl(numbered(2, 2), "rows/b.jsonl")
    write_jsonl(numbered(2), "rows/a.jsonl")
    rows = load(tmp_path, str(tmp_path / "rows"))
    assert [row.columns["number"] for row in rows] == [0, 1, 2, 3]
    assert rows[3].origin.endswith("b.jsonl, row 2")


def test_lines_of_a_text_file_are_texts(tmp_path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.txt").write_text("Once upon\n\na time\n")
    spec = DataSpec(sources=(str(tmp_path / "rows"),))
    rows = load_sources(spec, tmp_path / "cache", detect_training_format)
    assert [row.messages for row in rows] == [[{"role": "text", "content": text}] for text in ("Once upon", "a time")]
    (tmp_path / "rows" / "b.jsonl").write_text('{"query": "q"}\n')
    assert [row.origin for row in load_sources(spec, tmp_path / "cache")] == [f"{tmp_path}/rows/b.jsonl, row 1"]


def test_sources_of_different_columns_and_types_mix(tmp_path, write_jsonl):
    first = write_jsonl([{"query": "a", "answer": 4}], "a.jsonl")
    second = write_jsonl([{"messages": [{"role": "user", "content": "b"}], "answer": "x", "task": "t"}], "b.jsonl")
    rows = load(tmp_path, first, second)
    assert rows[0].columns == {"query": "a", "answer": 4, "task": None}
    assert rows[1].columns == {"query": None, "answer": "x", "task": "t"}
    assert [messages[0]["content"] for messages in rows.read([1, 0])] == ["b", "a"]


def test_sampling_more_than_there_is_repeats_evenly(tmp_path, write_jsonl):
    rows = load(tmp_path, write_jsonl(numbered(108)) + "#600")
    counts = Counter(row.columns["number"] for row in rows)
    assert len(rows) == 600 and len(counts) == 108
    assert sorted(Counter(counts.values()).items()) == [(5, 48), (6, 60)]


def test_sampling_less_takes_distinct_rows_by_seed(tmp_path, write_jsonl):
    path = write_jsonl(numbered(50)) + "#20"
    draw = [[row.columns["number"] for row in load(tmp_path, path, seed=seed)] for seed in (1, 1, 2)]
    assert draw[0] == draw[1] != draw[2]
    assert len(set(draw[0])) == 20
    ordered = load(tmp_path, path, shuffle=False)
    assert [row.columns["number"] for row in ordered] == list(range(20))


def draw(rows):
    return [row.columns["number"] // 100 for row in rows]


@pytest.mark.parametrize("stop", ["first_exhausted", "all_exhausted"])
def test_weights_mix_sources_in_their_proportion(tmp_path, write_jsonl, stop):
    paths = [write_jsonl(numbered(90, 100 * number), f"{number}.jsonl") for number in range(2)]
    mixed = [load(tmp_path, *paths, mix={"weights": [3, 1], "stop": stop}, seed=seed) for seed in (1, 1, 2)]
    orders = [[row.columns["number"] for row in rows] for rows in mixed]
    assert orders[0] == orders[1] != orders[2]
    counts = Counter(draw(mixed[0]))
    assert 2 < counts[0] / counts[1] < 5
    repeats = Counter(orders[0])
    if stop == "first_exhausted":  # one source is read whole, nothing twice
        assert counts[0] == 90 and set(repeats.values()) == {1}
    else:  # every row of both is there
        assert len(repeats) == 180


def test_a_source_cut_short_by_the_mix_shows_rows_from_all_over_it(tmp_path, write_jsonl):
    paths = [write_jsonl(numbered(5), "a.jsonl"), write_jsonl(numbered(90, 100), "b.jsonl")]
    seen = [row.columns["number"] for row in load(tmp_path, *paths, mix={"weights": [1, 1]}) if row.columns["number"] >= 100]
    assert len(seen) < 20 and max(seen) > 140
    ordered = load(tmp_path, *paths, mix={"weights": [1, 1]}, shuffle=False)
    found = [row.columns["number"] for row in ordered if row.columns["number"] >= 100]
    assert found == list(range(100, 100 + len(found)))


def test_modelscope_is_read_through_its_package(tmp_path, monkeypatch):
    calls = []

    def fake_load(name, **options):
        calls.append((name, options))
        data = Dataset.from_list(numbered(3))
        return SimpleNamespace(to_hf_dataset=lambda: data)

    package, datasets_module = ModuleType("modelscope"), ModuleType("modelscope.msdatasets")
    datasets_module.MsDataset = SimpleNamespace(load=fake_load)
    monkeypatch.setitem(sys.modules, "modelscope", package)
    monkeypatch.setitem(sys.modules, "modelscope.msdatasets", datasets_module)
    monkeypatch.setattr("rlflow.data.modelscope_hub.find_spec", lambda name: name == "modelscope")
    rows = load(tmp_path, "MS::org/name:a/b")
    assert len(rows) == 6 and rows[3].origin == "org/name:b[train], row 1"
    assert calls[0] == ("org/name", {"split": "train", "cache_dir": str(tmp_path / "cache"), "subset_name": "a"})


def test_all_subsets_are_those_that_the_hub_lists(tmp_path, monkeypatch):
    def fake_load(name, subset, **options):
        return Dataset.from_list([{"query": subset, "response": "1"}])

    monkeypatch.setattr("datasets.load_dataset", fake_load)
    for listed, read in ((["a", "b"], ["a", "b"]), (["a", "all"], ["all"])):
        monkeypatch.setattr("datasets.get_dataset_config_names", lambda name, listed=listed: listed)
        assert [row.messages[0]["content"] for row in load(tmp_path, "org/name:all")] == read


def test_subsets_that_cannot_be_listed_are_an_error_of_the_source(tmp_path, monkeypatch):
    def offline(name):
        raise ConnectionError("no route to the hub\nmore")

    monkeypatch.setattr("datasets.get_dataset_config_names", offline)
    with pytest.raises(DataError, match=r"^data.sources\[0\].subset: cannot list the subsets of org/name: no route to the hub$"):
        load(tmp_path, "org/name:all")
    with pytest.raises(ValueError, match=r"subset: all subsets can only be listed on the Hugging Face hub; name them"):
        load(tmp_path, "MS::org/name:all")


def test_the_core_of_modelscope_alone_is_not_enough_for_data_sets(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "modelscope", ModuleType("modelscope"))
    monkeypatch.setattr("rlflow.data.modelscope_hub.find_spec", lambda name: name == "modelscope")
    with pytest.raises(DataError, match=r"data.sources\[0\].hub: .* is missing: pip install 'modelscope\[datasets\]'$"):
        load(tmp_path, "MS::a/b")


def test_without_modelscope_one_line_says_what_to_install(tmp_path):
    with pytest.raises(SpecError, match=r"data.sources\[0\].hub: .*pip install modelscope"):
        load(tmp_path, "MS::org/name")


def test_columns_are_renamed_before_detection(tmp_path, write_jsonl):
    path = write_jsonl([{"text_in": "hi", "gold": "4"}])
    source = {"type": "file", "path": path, "columns": {"text_in": "query", "gold": "solution_text"}}
    row = load(tmp_path, source)[0]
    assert row.messages == [{"role": "user", "content": "hi"}]
    assert row.columns["solution_text"] == "4"
    with pytest.raises(DataError, match=r"data.sources\[0\].columns: .* has no column nope; it has text_in, gold"):
        load(tmp_path, source | {"columns": {"nope": "query"}})


def test_tools_of_rows_keep_their_own_fields(tmp_path, write_jsonl):
    tools = [[{"name": "add", "properties": {"a": {"type": "integer"}}}], [{"name": "say", "properties": {"text": {"x": 1}}}]]
    calls = [{"name": "add", "arguments": {"a": 1}}, {"name": "say", "arguments": {"text": "hi", "deep": {"b": [1]}}}]
    rows = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [call]}], "tools": given}
        for call, given in zip(calls, tools, strict=True)
    ]
    found = load(tmp_path, write_jsonl(rows)).read([0, 1])
    assert [messages[0]["tools"] for messages in found] == tools
    assert [messages[1]["tool_calls"][0]["function"] for messages in found] == calls


def test_a_missing_file_names_field_and_file(tmp_path):
    with pytest.raises(DataError, match=r"data.sources\[0\].path: there is no file nowhere.jsonl"):
        load(tmp_path, "nowhere.jsonl")


def test_a_malformed_row_names_file_and_row(tmp_path, write_jsonl):
    good = {"messages": [{"role": "user", "content": "hi"}]}
    path = write_jsonl([good] * 16 + [{"messages": [{"role": "user", "content": ""}]}])
    rows = load(tmp_path, path)
    with pytest.raises(DataError, match=r"rows.jsonl, row 17: content of message 1 \(user\) is empty"):
        rows.read(range(17))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"query": "a"}\n\n{"query": \n', "a.jsonl, row 2: not valid JSON"),
        ("a.jsonl", '{"query": "a"}\n"text"\n', "a.jsonl, row 2: is str, expected a JSON object"),
        ("a.jsonl", '[{"query": "a"}]\n[3]\n', "a.jsonl, row 1: is list"),
        ("a.json", '[{"query": "a"}, 3]', "a.json, row 2: is int"),
        ("a.json", '[{"query": "a"},', "a.json: not valid JSON"),
        ("a.jsonl", "", "a.jsonl: the file is empty"),
        ("a.jsonl", "\n\n", "a.jsonl: has no rows"),
        ("a.csv", "query,b\n", "a.csv: has no rows"),
        ("a.csv", 'query,b\n1,"\n', "a.csv: cannot be read as csv"),
        ("a.parquet", "nope", "a.parquet: cannot be read as parquet"),
        ("a.doc", "nope", "does not end in .json"),
        ("a.jsonl", '{"x": 1}\n', "a.jsonl, row 1: no messages: its columns are x"),
    ],
)
def test_an_unreadable_file_is_explained(tmp_path, capfd, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        load(tmp_path, {"type": "file", "path": str(tmp_path / name)})
    assert capfd.readouterr().err == ""


def test_a_data_set_that_is_not_there_names_the_field(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"data.sources\[0\].id: cannot load org/none:sub, split train: "):
        load(tmp_path, "org/none:sub")


def test_the_copy_of_a_file_is_used_again_only_if_path_size_and_time_are_the_same(tmp_path, monkeypatch):
    def read(folder, text, time_s=1_000):
        (tmp_path / folder).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / folder)
        Path("rows.jsonl").write_text(json.dumps({"query": text}) + "\n")
        os.utime("rows.jsonl", (time_s, time_s))
        return load_file(Path("rows.jsonl"), tmp_path / "cache")[0]["query"]

    assert read("a", "one") == "one"
    assert read("b", "two") == "two", "another folder"
    assert read("a", "three") == "three", "another size"
    assert read("a", "other", time_s=2_000) == "other", "another time"
    assert read("a", "OTHER", time_s=2_000) == "other", "the copy is not used again"


def test_puzzles_have_distinct_prompts_from_the_template(tmp_path):
    puzzle = {
        "type": "reasoning_gym",
        "task": "chain_sum",
        "size": 500,
        "options": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
        "prompt": "{expression}",
        "remove_prompt_spaces": True,
    }
    rows = load(tmp_path, puzzle)
    prompts = [row.messages[0]["content"] for row in rows]
    assert len(set(prompts)) == len(prompts) == 500
    assert all(" " not in prompt for prompt in prompts)
    for row in rows:
        assert str(eval(row.messages[0]["content"])) == row.messages[1]["content"] == row.columns["solution"]
    again = load(tmp_path, puzzle)
    assert [row.columns for row in again] == [row.columns for row in rows]
    assert again.fingerprint() == rows.fingerprint()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "nope"}, r"data.sources\[0\].task: reasoning_gym has no task 'nope'"),
        ({"options": {"nope": 1}}, r"data.sources\[0\].options: chain_sum refuses them"),
        ({"prompt": "{nope}"}, r"data.sources\[0\].prompt: cannot fill '{nope}'.*expression"),
        (
            {"options": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}, "size": 300},
            r"data.sources\[0\].size: chain_sum gave only \d+ distinct prompts",
        ),
    ],
)
def test_bad_puzzles_are_explained(tmp_path, fields, message):
    with pytest.raises(DataError, match=message):
        load(tmp_path, {"type": "reasoning_gym", "task": "chain_sum", "size": 10} | fields)
