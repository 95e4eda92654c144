import pytest
from pydantic import ValidationError

from rlflow.spec.data import DataSpec
from rlflow.spec.sources import FileSource, HubSource, ReasoningGymSource, SelfCognitionSource, parse_source


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("rows.jsonl#500", FileSource(path="rows.jsonl", sample=500)),
        ("some/dir/rows.parquet", FileSource(path="some/dir/rows.parquet")),
        ("./rows", FileSource(path="./rows")),
        ("HF::a/b:x/y#5", HubSource(id="a/b", subset="x/y", sample=5)),
        ("MS::a/b:x#5", HubSource(id="a/b", subset="x", sample=5, hub="modelscope")),
        ("org/name#5000", HubSource(id="org/name", sample=5000)),
        ("gsm8k", HubSource(id="gsm8k")),
        ("reasoning_gym:chain_sum#1000", ReasoningGymSource(task="chain_sum", size=1000)),
    ],
)
def test_a_string_is_short_for_a_source(text, source):
    assert DataSpec(sources=(text,)).sources == (source,)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("self_cognition", SelfCognitionSource()),
        ("self_cognition:empty_think#7", SelfCognitionSource(variant="empty_think", sample=7)),
        ("swift/self-cognition:qwen3#600", SelfCognitionSource(id="modelscope/self-cognition", variant="qwen3", sample=600)),
        ("HF::modelscope/self-cognition", SelfCognitionSource(id="modelscope/self-cognition")),
        ("MS::swift/self-cognition#9", SelfCognitionSource(id="swift/self-cognition", hub="modelscope", sample=9)),
    ],
)
def test_strings_of_self_cognition_take_the_names_of_the_data(text, source):
    spec = DataSpec(sources=(text,), model_name="N", model_author={"zh": "作者", "en": "A"})
    assert spec.sources == (source,)


SELF = {"type": "self_cognition"}


def test_an_existing_path_is_taken_whole(tmp_path):
    odd = tmp_path / "a:b#3"
    odd.mkdir()
    assert parse_source(str(odd)) == {"type": "file", "path": str(odd)}
    assert parse_source(f"{odd}#7") == {"type": "file", "path": str(odd), "sample": 7}


def test_a_single_source_needs_no_list():
    assert DataSpec.model_validate({"sources": "a.csv"}).sources == (FileSource(path="a.csv"),)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sources": []}, "at least 1"),
        ({"sources": ["rows.jsonl#many"]}, "must be a number of rows"),
        ({"sources": ["MS::org name"]}, "neither a file nor a data set id"),
        ({"sources": ["self_cognition"]}, "sources.0..name: missing; set it, or data.model_name\n.*author: missing"),
        ({"sources": [SELF | {"name": "N"}], "model_author": "A", "model_name": "M"}, "model_name: no self_cognition source"),
        ({"sources": ["a.csv"], "model_name": "M"}, "model_name: no self_cognition source"),
        ({"sources": [SELF | {"name": "N", "author": {"zh": "x"}}]}, r"LanguagePair\].en\n  Field required"),
        ({"sources": ["self_cognition:qwen2"]}, "qwen3"),
        ({"sources": [{"type": "hub", "id": "swift/self-cognition"}]}, "use type: self_cognition"),
        ({"sources": ["a.csv"], "mix": {"weights": [1, 2]}}, "2 weights for 1 sources"),
        ({"sources": ["a.csv"], "mix": {"weights": [0]}}, "greater than 0"),
        ({"sources": [{"type": "file", "path": "a.csv", "held_out": 3}], "held_out": 2}, "own held_out"),
        ({"sources": ["what is this"]}, "neither a file nor a data set id"),
        ({"sources": ["a.csv"], "loss_weights": [{"pattern": "(", "weight": 1}]}, "is no regular expression: missing"),
        ({"sources": ["a.csv"], "loss_weights": ["hermess"]}, "'hermes', 'qwen', 'react'"),
        ({"sources": ["a.csv"], "held_out": 1.5}, "not a fraction below 1.0"),
        ({"sources": ["a.csv"], "held_out": -1}, "greater than or equal to 0"),
        ({"sources": [{"type": "ftp", "path": "x"}]}, "reasoning_gym"),
        ({"sources": ["a.csv"], "max_length": 3}, "max_length"),
    ],
)
def test_mistakes_are_named(fields, message):
    with pytest.raises(ValidationError, match=message):
        DataSpec.model_validate(fields)


def test_held_out_keeps_rows_and_fractions_apart():
    assert isinstance(DataSpec(sources=("a.csv",), held_out=1).held_out, int)
    assert DataSpec(sources=("a.csv",), held_out=0.1).held_out == 0.1


def test_a_spec_survives_json():
    spec = DataSpec(sources=("a.csv#3", "reasoning_gym:chain_sum#10"), chat_template_kwargs={"enable_thinking": False})
    assert DataSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"held_out": 0.1}, "held_out: 0.1 is a share of rows that data.streaming does not count; write a number of rows"),
        ({"sources": ({"type": "file", "path": "a.csv", "held_out": 0.5},)}, "sources\\[0\\].held_out: 0.5 is a share"),
        ({"sources": ("a.csv#5",)}, "sources\\[0\\].sample: data.streaming reads as many rows as the job needs"),
        ({"mix": {"weights": (1,), "stop": "all_exhausted"}}, "mix.stop: with data.streaming every source starts anew"),
    ],
)
def test_what_needs_all_rows_cannot_be_streamed(fields, message):
    with pytest.raises(ValidationError, match=message):
        DataSpec(**{"sources": ("a.csv",), "streaming": {}, **fields})
