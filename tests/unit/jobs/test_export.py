"""`rlflow export` on tiny models, and its upload to a stand-in of the hub."""

import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from rlflow.cli import app
from rlflow.data.characters import build_character_tokenizer
from rlflow.errors import HubError, UserError
from tests.unit.jobs.hub_server import hub_server
from tests.unit.learner.tiny_models import tiny_qwen3

TOKEN = "hf_secretsecret"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A finished LoRA run as `rlflow run` leaves it: `model`, its checkpoint and the adapters; and the base."""
    folder = tmp_path_factory.mktemp("runs")
    tokenizer = build_character_tokenizer("0123456789+- abcdef")
    tiny_qwen3().save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "base"), LoraConfig(r=2, target_modules="all-linear"))
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn_like(parameter)
    step = folder / "tuned" / "checkpoints" / "step-000002"
    adapted.save_pretrained(step / "adapter")
    adapted.merge_and_unload().save_pretrained(step / "model")
    tokenizer.chat_template += "{# of the run #}"
    tokenizer.save_pretrained(step / "model")
    (step / "COMPLETE").write_text("{}")
    (folder / "tuned" / "resolved.json").write_text("{}")
    (folder / "tuned" / "model").symlink_to("checkpoints/step-000002/model")
    return folder


def export(*arguments, runs: Path):
    ran = CliRunner().invoke(app, ["export", *map(str, arguments), "--runs", str(runs)])
    if ran.exception is not None and not isinstance(ran.exception, SystemExit):
        raise ran.exception
    return ran.output


def weights(path):
    return AutoModelForCausalLM.from_pretrained(path).state_dict()


def test_a_runs_model_is_copied_with_tokenizer_and_template(run_dir, tmp_path):
    shown = export("tuned", "--output", tmp_path / "out", runs=run_dir)
    assert f"written: {tmp_path / 'out'}" in shown
    source = run_dir / "tuned" / "model"
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == {p.name: p.read_bytes() for p in source.iterdir()}


@pytest.mark.parametrize(
    "arguments",
    [("tuned", "--merge"), ("base", "--adapter", "tuned"), ("adapter",)],
    ids=["run", "model and run", "adapter directory"],
)
def test_merging_gives_the_model_of_training_and_says_how_close(run_dir, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(run_dir)
    places = {"base": run_dir / "base", "adapter": run_dir / "tuned/checkpoints/step-000002/adapter"}
    shown = export(*(places.get(a, a) for a in arguments), "--output", tmp_path / "out", runs=run_dir)
    assert "log-probabilities of a probe differ from those with the adapters beside it by" in shown
    merged, trained = weights(tmp_path / "out"), weights(run_dir / "tuned" / "model")
    assert max((merged[name] - trained[name]).abs().max().item() for name in trained) < 1e-6
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template.endswith("{# of the run #}")


def test_adapters_alone(run_dir, tmp_path):
    export("tuned", "--no-merge", "--output", tmp_path / "out", runs=run_dir)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {p.name for p in (tmp_path / "out").iterdir()}
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_other_type_and_shards(run_dir, tmp_path):
    export("tuned", "--output", tmp_path / "out", "--dtype", "bfloat16", "--max-shard-size", "20KB", runs=run_dir)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template.endswith("{# of the run #}")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nothing", "--output", "o"], "model: there is no directory nothing .* no run in .* has this name"),
        (["base", "--merge", "--output", "o"], "--merge: .*base has no adapters; name them with --adapter"),
        (
            ["base", "--adapter", "base", "--output", "o"],
            "adapter: .*base is neither a directory with adapter_config.json nor a run",
        ),
        (["base", "--output", "."], "--output: . exists and is not an empty directory"),
        (["base"], "--output: missing; or push a directory as it is"),
        (
            ["tuned", "--push", "a/b"],
            "--output: missing; only a directory of a model or of adapters can be pushed as it is, tuned",
        ),
        (["base", "--push", "a/b", "--dtype", "float16"], "--dtype: say where the changed model is to be written"),
        (["base", "--output", "o", "--dtype", "int4"], "--dtype: 'int4' is none of bfloat16, float16 and float32"),
        (["base", "--output", "o", "--private"], "--token, --private, --hub: say where to with --push REPO"),
        (["base", "--output", "o", "--push", "a/b", "--hub", "modelscope"], "--hub: ModelScope needs its package, which is not"),
        (["org/m", "--output", "o", "--source-hub", "modelscope"], "--source-hub: ModelScope needs its package, which is not"),
        (["base", "--output", "o", "--source-hub", "x"], "--source-hub: 'x' is neither huggingface nor modelscope"),
        (["base", "--output", "o", "--push", "a/b", "--hub", "x"], "--hub: 'x' is neither huggingface nor modelscope"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(run_dir, monkeypatch, arguments, line):
    monkeypatch.setattr("rlflow.data.modelscope_hub.find_spec", lambda name: None)
    monkeypatch.chdir(run_dir)
    before = sorted(run_dir.iterdir())
    with pytest.raises(UserError, match=line):
        export(*(run_dir / a if a == "base" else a for a in arguments), runs=run_dir)
    assert sorted(run_dir.iterdir()) == before


def test_a_model_of_modelscope_is_written(run_dir, tmp_path, modelscope):
    modelscope["org/m"] = run_dir / "base"
    export("org/m", "--source-hub", "modelscope", "--output", tmp_path / "out", runs=run_dir)
    export("org/m", "--source-hub", "modelscope", "--adapter", "tuned", "--output", tmp_path / "merged", runs=run_dir)
    same, merged, base = (weights(path) for path in (tmp_path / "out", tmp_path / "merged", run_dir / "base"))
    assert all(same[name].equal(base[name]) for name in base)
    assert not all(merged[name].equal(base[name]) for name in base)


def test_the_base_of_adapters_may_be_of_modelscope(run_dir, tmp_path, modelscope):
    modelscope["org/m"] = run_dir / "base"
    shutil.copytree(run_dir / "tuned" / "checkpoints" / "step-000002" / "adapter", tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "org/m"}))
    export(tmp_path / "adapter", "--source-hub", "modelscope", "--output", tmp_path / "out", runs=run_dir)
    merged, trained = weights(tmp_path / "out"), weights(run_dir / "tuned" / "model")
    assert max((merged[name] - trained[name]).abs().max().item() for name in trained) < 1e-6


# ---- pushing


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with hub_server(TOKEN) as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        yield server


def test_every_byte_reaches_the_hub_and_the_token_no_screen(run_dir, tmp_path, hub):
    arguments = ("--push", "me/model", "--token", TOKEN, "--private")
    shown = export("tuned", "--output", tmp_path / "out", *arguments, runs=run_dir)
    assert f"pushed: {hub.url}/me/model" in shown and TOKEN not in shown
    assert hub.repositories == {"me/model": True}
    assert hub.files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert hub.commits == ["Model exported by rlflow"]


def test_what_was_written_is_pushed_after_a_push_that_failed(run_dir, tmp_path, hub):
    written = tmp_path / "out"
    with pytest.raises(UserError, match="refuses the token") as refused:
        export("tuned", "--output", written, "--push", "me/model", "--token", "wrong", runs=run_dir)
    assert str(refused.value).endswith(f"\nnot pushed; {written} is whole: `rlflow export {written} --push me/model` uploads it")
    assert f"pushed: {hub.url}/me/model" in export(written, "--push", "me/model", "--token", TOKEN, runs=run_dir)
    assert hub.files == {path.name: path.read_bytes() for path in written.iterdir()}


def test_the_token_of_the_environment_is_used(run_dir, tmp_path, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    export("tuned", "--output", tmp_path / "out", "--push", "model", runs=run_dir)
    assert hub.repositories == {"me/model": False}


def test_a_refused_token_is_one_line_without_it(run_dir, tmp_path, hub):
    with pytest.raises(UserError, match=r"^--push me/model: the hub refuses the token; set HF_TOKEN") as raised:
        export("tuned", "--output", tmp_path / "out", "--push", "me/model", "--token", "hf_wrongwrong", runs=run_dir)
    assert "wrongwrong" not in str(raised.value)


def test_a_hub_that_does_not_answer_is_one_line(run_dir, tmp_path, hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"^--push me/model: "):
        export("tuned", "--output", tmp_path / "out", "--push", "me/model", "--token", TOKEN, runs=run_dir)
