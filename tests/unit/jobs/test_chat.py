"""What a chat makes of its options before the engine starts."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.main import get_command

from rlflow.cli import app
from rlflow.data.characters import build_character_tokenizer
from rlflow.data.questions import ask
from rlflow.errors import SpecError
from rlflow.jobs.chat import ChatOptions, _data_spec, _model_path
from rlflow.jobs.flags import chat_options
from rlflow.spec.rollout import GenerationSpec
from tests.unit.learner.tiny_models import tiny_qwen3


def options(*words: str) -> ChatOptions:
    """Of `rlflow chat` with these words."""
    group: Any = get_command(app)
    return chat_options(group.commands["chat"].make_context("chat", list(words)).params)


def test_every_flag_reaches_the_chat(tmp_path):
    (tmp_path / "system.txt").write_text("Be brief.")
    words = (
        f"org/m --hub huggingface --adapter tuned --no-thinking --response-prefix <b>\\n "
        f"--system {tmp_path / 'system.txt'} --temperature 0 "
        "--top-p 0.9 --top-k 20 --repetition-penalty 1.1 --max-tokens 64 --max-model-tokens 512 --chat-template qwen3 "
        f"--dtype float32 --tensor-parallel-size 2 --gpu-memory-utilization 0.5 --seed 7 --runs {tmp_path}"
    )
    assert options(*words.split()) == ChatOptions(
        model="org/m",
        hub="huggingface",
        adapter="tuned",
        settings=GenerationSpec(
            temperature=0,
            top_p=0.9,
            top_k=20,
            repetition_penalty=1.1,
            max_completion_tokens=64,
            max_num_seqs=4,
            tensor_parallel_size=2,
            gpu_memory_utilization=0.5,
        ),
        thinking=False,
        response_prefix="<b>\n",
        system="Be brief.",
        chat_template="qwen3",
        dtype="float32",
        max_model_tokens=512,
        seed=7,
        runs=tmp_path,
    )


def test_without_flags_the_model_samples_as_it_says():
    plain = options("org/m")
    assert plain.settings == GenerationSpec(max_num_seqs=4, gpu_memory_utilization=0.9)
    assert (plain.adapter, plain.thinking, plain.response_prefix, plain.system, plain.dtype) == (None, True, "", None, None)
    assert (plain.max_model_tokens, plain.seed, plain.runs) == (None, 0, Path("runs"))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--temperature -1", "--temperature: Input should be greater than or equal to 0"),
        ("--max-tokens 0", "--max-tokens: Input should be greater than or equal to 1"),
        ("--top-p 0 --top-k -1", "--top-p: Input should be greater than 0\n--top-k: Input should be greater than or equal to 0"),
        ("--gpu-memory-utilization 2", "--gpu-memory-utilization: Input should be less than or equal to 1"),
        ("--hub x", "--hub: 'x' is neither huggingface nor modelscope"),
        ("--dtype int8", "--dtype: 'int8' is none of bfloat16, float16 and float32"),
    ],
)
def test_a_mistake_names_its_flag(words, line):
    with pytest.raises(SpecError) as caught:
        options("org/m", *words.split())
    assert str(caught.value) == line


def test_a_model_of_modelscope_is_downloaded_and_asked(tuned, modelscope):
    modelscope["org/m"] = tuned / "base"
    with ExitStack() as stack:
        assert _model_path(options("org/m", "--hub", "modelscope", "--runs", str(tuned)), stack) == str(tuned / "base")
        with pytest.raises(SpecError, match=r"^model: cannot download org/none from ModelScope: no org/none; no run in .*$"):
            _model_path(options("org/none", "--hub", "modelscope", "--runs", str(tuned)), stack)


def test_a_missing_modelscope_is_one_line(monkeypatch):
    monkeypatch.setattr("rlflow.data.modelscope_hub.find_spec", lambda name: None)
    with pytest.raises(SpecError) as caught:
        options("org/m", "--hub", "modelscope")
    assert str(caught.value) == "--hub: ModelScope needs its package, which is not installed: pip install modelscope"


def test_no_thinking_has_the_template_close_the_thinking():
    tokenizer = build_character_tokenizer("abc<>/ ")
    starts = {}
    for words in ((), ("--no-thinking",)):
        data = _data_spec(options("org/m", *words))
        starts[words] = ask(tokenizer, [{"role": "user", "content": "a"}], data).text.rpartition("assistant\n")[2]
    assert starts == {(): "", ("--no-thinking",): "<think>\n\n</think>\n\n"}


@pytest.fixture
def tuned(tmp_path) -> Path:
    """A base with its tokenizer, and in `tuned` a run's complete checkpoint of adapters."""
    tiny_qwen3().save_pretrained(tmp_path / "base")
    build_character_tokenizer("abc").save_pretrained(tmp_path / "base")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), LoraConfig(r=2, target_modules=["q_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, 0.1)
    step = tmp_path / "tuned" / "checkpoints" / "step-000002"
    model.save_pretrained(step / "adapter")
    (step / "COMPLETE").write_text("{}")
    (tmp_path / "tuned" / "resolved.json").write_text("{}")
    return tmp_path


def test_a_runs_adapters_are_merged_into_a_model_that_goes_with_the_chat(tuned):
    base = str(tuned / "base")
    with ExitStack() as stack:
        assert _model_path(options(base, "--runs", str(tuned)), stack) == base
        path = _model_path(options(base, "--adapter", "tuned", "--runs", str(tuned)), stack)
        merged, plain = (AutoModelForCausalLM.from_pretrained(place).state_dict() for place in (path, base))
        changed = {name for name in plain if not torch.equal(plain[name], merged[name])}
        assert changed == {name for name in plain if name.endswith("q_proj.weight")}
        assert AutoTokenizer.from_pretrained(path).get_vocab() == AutoTokenizer.from_pretrained(base).get_vocab()
    assert not Path(path).exists()


def test_adapters_that_are_not_there_are_named(tuned):
    with (
        ExitStack() as stack,
        pytest.raises(SpecError, match=r"^adapter: nope is neither a directory with adapter_config\.json nor"),
    ):
        _model_path(options(str(tuned / "base"), "--adapter", "nope", "--runs", str(tuned)), stack)
