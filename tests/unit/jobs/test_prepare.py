import sys
from pathlib import Path
from types import ModuleType

import pytest

from rlflow.errors import SpecError
from rlflow.jobs.prepare import engine_settings, fetch_model, find_tokenizer
from rlflow.jobs.rewards import find_reward_models
from rlflow.jobs.static_checks import static_problems
from rlflow.spec.load import parse_job
from rlflow.spec.model import ModelSpec
from rlflow.spec.rollout import GenerationSpec


def job(**fields):
    spec = {"kind": "sft", "run": {"name": "r"}, "model": {"path": "org/m"}, "data": {"sources": ["org/rows"]}, "steps": 1}
    return parse_job(spec | fields)


def test_missing_bitsandbytes_is_said_before_anything_starts(monkeypatch):
    quantised = job(model={"path": "org/m", "lora": {"quantization": "nf4"}})
    monkeypatch.setattr("rlflow.learner.quantization.find_spec", lambda name: None)
    assert static_problems(quantised) == [
        "model.lora.quantization: 4-bit weights need bitsandbytes, which is not installed: pip install 'rlflow[qlora]'"
    ]
    monkeypatch.setattr("rlflow.learner.quantization.find_spec", lambda name: name)
    assert static_problems(quantised) == []


def test_a_model_of_modelscope_is_downloaded_when_a_run_starts(monkeypatch, tmp_path):
    package = ModuleType("modelscope")
    package.snapshot_download = lambda name, revision=None: f"/cache/{name}@{revision}"
    monkeypatch.setitem(sys.modules, "modelscope", package)
    monkeypatch.setattr("rlflow.data.modelscope_hub.find_spec", lambda name: package)
    monkeypatch.setattr("rlflow.jobs.adapters.find_hub_model", lambda name, field: name)
    model = ModelSpec(path="org/name", hub="modelscope", revision="v1")
    assert fetch_model(model, tmp_path) == "/cache/org/name@v1"
    assert fetch_model(ModelSpec(path="org/name"), tmp_path) == "org/name"
    assert fetch_model(ModelSpec(path=str(tmp_path), hub="modelscope"), tmp_path) == str(tmp_path)


def test_a_model_that_is_nowhere_is_named_by_its_field(monkeypatch, tmp_path):
    def find(name, field):
        raise SpecError(f"{field}: there is no directory {name}")

    monkeypatch.setattr("rlflow.jobs.adapters.find_hub_model", find)
    judge = {"type": "judge", "model": "org/judge", "prompt": "{completion}", "engine": {}}
    rewards = [{"type": "model", "path": "org/rm"}]
    fields = {"kind": "grpo", "rollout": {}, "data": {"sources": ["org/rows"], "held_out": 0}, "prompts_per_step": 1}
    random = {"random": {"config": "qwen3-0.6b", "tokenizer": "org/t"}}
    for line, search in (
        ("model.path: there is no directory org/m", lambda: find_tokenizer(job())),
        ("model.random.tokenizer: there is no directory org/t", lambda: find_tokenizer(job(model=random))),
        ("teacher.path: there is no directory org/t", lambda: fetch_model(ModelSpec(path="org/t"), tmp_path, "teacher")),
        ("rewards[0].path: there is no directory org/rm", lambda: find_reward_models(job(**fields, rewards=rewards))),
        ("rewards[0].model: there is no directory org/judge", lambda: find_reward_models(job(**fields, rewards=[judge]))),
    ):
        with pytest.raises(SpecError) as error:
            search()
        assert str(error.value) == line


def test_a_plan_says_what_modelscope_needs_without_downloading(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rlflow.data.modelscope_hub.find_spec", lambda name: None)
    for problems, field in (
        (static_problems(job(model={"path": "org/m", "hub": "modelscope"})), "model.hub"),
        (static_problems(job(data={"sources": ["MS::org/rows"]})), "data.sources[0].hub"),
    ):
        assert problems == [f"{field}: ModelScope needs its package, which is not installed: pip install modelscope"]
    assert not any(Path().iterdir())


def test_a_revision_of_the_hub_is_a_directory_for_all_libraries(tmp_path, monkeypatch):
    def download(name, revision):
        if revision != "v1":
            raise OSError("no such revision")
        return f"/cache/{name}@{revision}"

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert fetch_model(ModelSpec(path="org/name", revision="v1"), tmp_path) == "/cache/org/name@v1"
    with pytest.raises(SpecError, match=r"^teacher.revision: cannot download org/name at v2: no such revision"):
        fetch_model(ModelSpec(path="org/name", revision="v2"), tmp_path, "teacher")


def test_engines_run_the_code_of_a_model_only_if_asked():
    settings = GenerationSpec(engine={"max_logprobs": 3})
    assert engine_settings(settings, ModelSpec(path="m")) == settings
    trusting = engine_settings(settings, ModelSpec(path="m", trust_remote_code=True))
    assert trusting.engine == {"trust_remote_code": True, "max_logprobs": 3}
