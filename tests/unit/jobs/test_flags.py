import json

import pytest

from rlflow.errors import SpecError
from rlflow.jobs.flags import in_flags, infer_document, read_text, refuse_flags
from rlflow.spec.load import parse_job

NONE = {"output": None, "runs": "runs", "data": ["q.jsonl"]}


@pytest.fixture(autouse=True)
def hub(monkeypatch):
    """Has every model."""
    monkeypatch.setattr("rlflow.jobs.adapters.find_hub_model", lambda name, field: name)


def test_mistakes_name_flags_and_nothing_else():
    told = "spec: rollout.top_p: is 2\nadapter: path/to/adapter is none\ndata.sources[0].path: no adapter.jsonl\n--adapter: x"
    with pytest.raises(SpecError) as caught, in_flags():
        raise SpecError(told)
    assert str(caught.value) == "--top-p: is 2\n--adapter: path/to/adapter is none\n--data: no adapter.jsonl\n--adapter: x"


def test_flags_build_the_spec_that_says_the_same(tmp_path):
    flags = {
        **NONE,
        "output": "d/distill set.jsonl",
        "data": ["a.jsonl#5", "org/name"],
        "runs": str(tmp_path),
        "temperature": 0.0,
        "num_samples": 1,
        "num_workers": 2,
        "no_thinking": True,
        "response_prefix": "<think>\n\n</think>\n\n",
        "system": "Be brief.",
        "drop_truncated": True,
        "max_tokens": 64,
    }
    job = parse_job(infer_document("org/model", flags))
    assert job == parse_job(
        {
            "kind": "infer",
            "run": {"name": "infer_distill_set", "dir": str(tmp_path)},
            "model": {"path": "org/model"},
            "data": {
                "sources": ["a.jsonl#5", "org/name"],
                "system": "Be brief.",
                "chat_template_kwargs": {"enable_thinking": False},
            },
            "rollout": {"temperature": 0, "num_workers": 2, "max_completion_tokens": 64},
            "infer": {
                "output": "d/distill set.jsonl",
                "num_samples": 1,
                "response_prefix": "<think>\n\n</think>\n\n",
                "drop_truncated": True,
            },
        }
    )


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_a_model_is_asked_in_the_type_it_is_stored_in(tmp_path, stored):
    (tmp_path / "config.json").write_text(json.dumps({"dtype": stored}))
    assert infer_document(str(tmp_path), NONE)["model"] == {"path": str(tmp_path), "dtype": stored}


def test_the_hub_of_a_model_is_part_of_the_spec(modelscope, tmp_path):
    modelscope["org/m"] = tmp_path
    assert parse_job(infer_document("org/m", {**NONE, "output": "a.jsonl", "hub": "modelscope"})).model.hub == "modelscope"
    assert "hub" not in infer_document("org/m", {**NONE, "hub": None})["model"]


def test_a_run_is_named_as_such(tmp_path):
    (tmp_path / "warm").mkdir()
    (tmp_path / "warm" / "resolved.json").write_text("{}")
    assert infer_document("warm", {**NONE, "runs": str(tmp_path)})["model"]["from_run"] == "warm"


def test_flags_beside_a_spec_are_refused_and_zero_is_a_value():
    refuse_flags({"runs": "runs", "top_p": None, "data": None, "drop_truncated": False})
    with pytest.raises(SpecError, match=r"^--temperature, --max-tokens: a spec file says what to do"):
        refuse_flags({"runs": "runs", "temperature": 0.0, "max_tokens": 5})


def test_text_flags_are_files_or_have_line_breaks(tmp_path):
    (tmp_path / "s.txt").write_text("from a file")
    assert read_text(str(tmp_path / "s.txt")) == "from a file"
    assert read_text(r"<think>\n\n</think>\n\n") == "<think>\n\n</think>\n\n"
    assert read_text(None) is None
