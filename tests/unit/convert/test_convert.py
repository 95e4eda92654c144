"""Flags to fields: no flag is dropped in silence, defaults are those of the version, mistakes are one line each."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import rlflow as rlflow_package
from rlflow.cli import app
from rlflow.convert import flags
from rlflow.convert.convert import TABLES, convert
from rlflow.data.characters import build_character_tokenizer
from rlflow.data.chat import render, set_template
from rlflow.errors import UserError
from rlflow.jobs.plan import parse_devices, plan_job
from rlflow.spec.data import DataSpec, StreamingSpec
from rlflow.spec.load import parse_job

SFT = "swift sft --model org/m --tuner_type full --dataset org/d --max_length 100 --output_dir o"
GRPO = (
    "swift rlhf --rlhf_type grpo --model org/m --tuner_type full --dataset org/d --max_length 100 --reward_funcs accuracy cosine"
)
BASES = {
    "sft": SFT,
    "infer": "swift infer --model org/m --val_dataset org/d",
    "chat": "swift infer --model org/m",
    "export": "swift export --model org/m --merge_lora true",
    "megatron": "megatron sft --load org/m --dataset org/d --train_iters 5",
    "grpo": f"{GRPO} --num_generations 8 --gradient_accumulation_steps 8",
    "dpo": "swift rlhf --rlhf_type dpo --model org/m --tuner_type full --dataset org/d --max_length 100",
    "kto": "swift rlhf --rlhf_type kto --model org/m --tuner_type full --dataset org/d --max_length 100",
    "rm": "swift rlhf --rlhf_type rm --model org/m --tuner_type full --dataset org/d --max_length 100",
    "ppo": "swift rlhf --rlhf_type ppo --model org/m --tuner_type full --dataset org/d --max_length 100 --reward_model org/r",
    "gkd": "swift rlhf --rlhf_type gkd --model org/m --tuner_type full --dataset org/d --max_length 100 --teacher_model org/t",
}


def document(command: str, **options: Any) -> dict[str, Any]:
    result = convert(command, **options).result
    assert isinstance(result, dict)
    return result


def notes(command: str, **options: Any) -> list[str]:
    return [str(note) for note in convert(command, **options).notes]


# ---- nothing in silence

SAMPLES = {
    flags.text: "zzz",
    flags.integer: "3",
    flags.number: "0.3",
    flags.numbers: "0.3",
    flags.boolean: "true",
    flags.words: "zzz",
    flags.mapping: '{"zzz": "y"}',
}
"""A value of each type that is no default of any flag."""


VALID = {
    "min_lr": "1e-7",
    "importance_sampling_level": "sequence",
    "delta": "1.5",
    "num_mini_batches": "4",
    "gradient_accumulation_steps": "32",
    "steps_per_generation": "16",
    "generation_batch_size": "16",
    "per_device_train_batch_size": "2",
}
"""Values of flags that take no others."""


@pytest.mark.parametrize("base", BASES)
def test_every_flag_changes_the_result_or_is_noted_or_refused(base):
    command = BASES[base]
    table, _ = TABLES[" ".join(command.split()[:2])]
    plain = convert(command)
    silent = []
    for name, flag in table.items():
        if f"--{name} " in command or (flag.missing and not flag.same):  # these are noted, whatever the value
            continue
        for value in ("true", "false") if flag.read is flags.boolean else (VALID.get(name) or SAMPLES.get(flag.read, "zzz"),):
            try:
                done = convert(f"{command} --{name} '{value}'")
            except UserError as error:
                silent += [] if name in str(error) or name.removesuffix("_size") in str(error) else [f"--{name} {value}: {error}"]
                continue
            is_seen = done.result != plain.result or any(f"--{name}" in note.what for note in done.notes)
            silent += [] if is_seen or (value == "false" and not flag.default) else [f"--{name} {value}"]
    assert silent == []


# ---- names, versions, defaults


def test_old_and_new_names_are_the_same_flag():
    old = f"{GRPO} --num_generations 8 --gradient_accumulation_steps 8 --tensor_parallel_size 1".replace("tuner", "train")
    new = old.replace("--tensor", "--vllm_tensor").replace("train_type", "tuner_type")
    assert document(old) == document(new, version="3.6")
    assert document(new)["rollout"] != document(old)["rollout"], "and the names tell the version"


def test_defaults_of_the_version_are_written_out():
    command = f"{GRPO} --num_generations 8 --gradient_accumulation_steps 8"
    assert document(command, version="3.6")["rollout"] == {"num_generations": 8, "temperature": 0.9, "top_p": 0.9, "top_k": 50}
    assert document(command, version="4")["rollout"] == {"num_generations": 8, "temperature": 0.9}
    dpo = BASES["dpo"]
    assert document(dpo, version="3.6")["dpo"]["rpo_alpha"] == 1.0
    assert "rpo_alpha" not in document(dpo, version="4")["dpo"]


def test_what_ms_swift_would_do_by_default_is_in_the_spec():
    job = document("swift sft --model org/m --dataset org/d --max_length 100")
    assert job["model"]["lora"] == {"rank": 8, "alpha": 32, "dropout": 0.05, "target_modules": "all-linear"}
    assert job["learner"]["optimizer"] == {"learning_rate": 1e-4}
    assert job["learner"]["schedule"] == {"type": "cosine"}
    assert (job["batch_size"], job["epochs"], job["run"]["save_every"]) == (16, 3, 500)
    assert document(SFT)["learner"]["optimizer"] == {"learning_rate": 1e-5}, "of full training"


def test_a_quantised_base_is_kept_if_it_can_be():
    command = "swift sft --model org/m --dataset org/d"
    assert document(f"{command} --quant_method bnb --quant_bits 4")["model"]["lora"]["quantization"] == "nf4"
    converted = convert(f"{command} --quant_method bnb --quant_bits 8")
    assert [note.what for note in converted.notes if "bitsandbytes" in note.text] == ["--quant_method bnb", "--quant_bits 8"]


def test_hybrid_thinking_models_ignore_empty_thinking_since_4():
    command = "swift sft --model Qwen/Qwen3-8B --dataset org/d"
    assert document(command, version="4")["data"]["ignore_empty_think"] is True
    assert "ignore_empty_think" not in document(command, version="3.6")["data"]
    assert document(f"{command} --loss_scale last_round+ignore_empty_think")["data"] | {"sources": 0} == {
        "sources": 0,
        "loss": "last_round",
        "ignore_empty_think": True,
        "overlong": "drop",
    }


def test_empty_thinking_gets_its_loss_back():
    command = "swift sft --model Qwen/Qwen3-8B --dataset org/d --disable_ignore_empty_think"
    assert "ignore_empty_think" not in document(f"{command} true", version="4")["data"]
    assert document(f"{command} false")["data"]["ignore_empty_think"] is True, "the flag tells the version"
    assert document(f"{command} true --loss_scale default+ignore_empty_think")["data"]["ignore_empty_think"] is True
    assert any(line.startswith("same: --disable_ignore_empty_think true: ") for line in notes(f"{command} true"))


# ---- thinking

HYBRID = "Qwen/Qwen3-8B"
OFF = "changed: enable_thinking: is off in ms-swift 4 for models that can think or not; written out "


@pytest.mark.parametrize("base", ["infer", "grpo", "ppo", "gkd"])
def test_hybrid_models_do_not_think_since_4(base):
    command = BASES[base].replace("--model org/m", f"--model {HYBRID}")
    assert document(command, version="4")["data"]["chat_template_kwargs"] == {"enable_thinking": False}
    assert f"{OFF}(data.chat_template_kwargs: {{enable_thinking: false}})" in notes(command, version="4")
    asked = document(f"{command} --enable_thinking true", version="4")
    assert asked["data"]["chat_template_kwargs"] == {"enable_thinking": True}
    assert "chat_template_kwargs" not in document(command, version="3.6")["data"]
    assert "chat_template_kwargs" not in document(BASES[base], version="4")["data"], "of models that always think, or never"


@pytest.mark.parametrize("base", ["sft", "dpo", "kto", "rm", "megatron"])
def test_rows_to_train_on_are_rendered_as_they_are(base):
    command = BASES[base].replace("org/m", HYBRID)
    assert "chat_template_kwargs" not in document(command, version="4")["data"]


def test_a_chat_with_a_hybrid_model_does_not_think_since_4(tmp_path):
    command = f"swift infer --model {HYBRID}"
    assert convert(command, version="4").result == ["rlflow", "chat", HYBRID, "--no-thinking"]
    assert f"{OFF}(--no-thinking)" in notes(command, version="4")
    for unchanged in (convert(command, version="3.6"), convert(f"{command} --enable_thinking true", version="4")):
        assert unchanged.result == ["rlflow", "chat", HYBRID]
    adapters = f"swift infer --adapters {tmp_path}"
    assert any(line.startswith("changed: enable_thinking: ") for line in notes(adapters, version="4")), "it may be one"
    (tmp_path / "args.json").write_text(f'{{"model": "{HYBRID}"}}', encoding="utf-8")
    assert "--no-thinking" in convert(adapters, version="4").result


def test_a_response_prefix_decides_whether_it_thinks():
    chat = f"swift infer --model {HYBRID} --response_prefix x"
    assert convert(chat, version="4").result == ["rlflow", "chat", HYBRID, "--response-prefix", "x"]
    rows = f"{chat} --val_dataset org/d --enable_thinking false"
    assert "chat_template_kwargs" not in document(rows, version="4")["data"]
    assert "same: --enable_thinking false: response_prefix decides how answers begin" in notes(rows)


@pytest.mark.parametrize(
    ("flags", "version", "line"),
    [
        ("", "4", "changed: add_non_thinking_prefix: {}; ms-swift all that are trained"),
        ("", "3.6", "changed: add_non_thinking_prefix: {}; data.chat_template: qwen3 begins none so, as ms-swift does"),
        ("--loss_scale last_round", "4", None),
        ("--add_non_thinking_prefix true", None, "changed: --add_non_thinking_prefix true: {}; ms-swift all that are trained"),
        ("--add_non_thinking_prefix true --loss_scale last_round", None, "same: --add_non_thinking_prefix true: {}"),
        ("--add_non_thinking_prefix false", None, "no equivalent: --add_non_thinking_prefix false: {}; "
            "data.chat_template: qwen3 begins none so, as ms-swift does"),
    ],
)  # fmt: skip
def test_who_puts_empty_blocks_before_answers(flags, version, line):
    text = "the chat template decides: Qwen3's own begins the last answer, if it has no thinking, with an empty block"
    command = f"{SFT.replace('org/m', HYBRID)} {flags}"
    found = [note for note in notes(command, version=version) if "add_non_thinking_prefix" in note]
    assert found == ([] if line is None else [line.format(text)])


def test_the_packaged_template_writes_no_empty_block():
    """What the notes say of it."""
    characters = build_character_tokenizer("".join(map(chr, range(32, 127))))
    spec = DataSpec.model_validate({"sources": ["a.jsonl"], "chat_template": "qwen3"})
    set_template(characters, "m", spec)
    rows = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert "<think>" not in render(characters, rows, spec, for_generation=False)


# ---- numbers


@pytest.mark.parametrize(
    ("variables", "ranks", "batch"),
    [
        ("", 1, 2 * 4),
        ("NPROC_PER_NODE=4 ", 4, 2 * 4 * 4),
        ("NNODES=2 NPROC_PER_NODE=8 ", 16, 2 * 16 * 4),
        ("CUDA_VISIBLE_DEVICES=0,1 ", 2, 2 * 4),
    ],
)
def test_batch_sizes_count_all_processes(variables, ranks, batch):
    job = document(f"{variables}{SFT} --per_device_train_batch_size 2 --gradient_accumulation_steps 4")
    assert job["batch_size"] == batch
    assert job["learner"].get("num_ranks", 1) == ranks


@pytest.mark.parametrize(
    ("extra", "prompts", "steps"),
    [
        ("--per_device_train_batch_size 8", 8, 1),
        ("--per_device_train_batch_size 8 --gradient_accumulation_steps 4", 32, 1),
        ("--per_device_train_batch_size 8 --steps_per_generation 4", 32, 4),
        ("--per_device_train_batch_size 8 --generation_batch_size 128", 16, 2),
    ],
)
def test_grpo_counts_completions_there_and_prompts_here(extra, prompts, steps):
    job = document(f"NPROC_PER_NODE=8 {GRPO} --num_generations 8 {extra}")
    assert job["prompts_per_step"] == prompts
    assert job["grpo"].get("optimizer_steps_per_batch", 1) == steps


def test_context_parallelism_becomes_sequence_parallelism():
    command = (
        "megatron sft --model org/m --dataset org/d --train_iters 5 --context_parallel_size 4 --tensor_model_parallel_size 2"
    )
    assert document(command)["learner"]["sequence_parallel"] == 4
    with pytest.raises(UserError, match=r"expert_parallel, sequence_parallel: DeepSpeed's AutoEP does not go with"):
        convert(f"{command} --expert_model_parallel_size 2")


def test_dapo_and_its_rewards():
    job = parse_job(
        document(
            f"{GRPO.replace('cosine', 'soft_overlong')} --num_generations 4 --per_device_train_batch_size 4 --loss_type dapo "
            "--epsilon_high 0.28 --dynamic_sample true --overlong_filter true --beta 0 --max_completion_length 2048 "
            "--soft_cache_length 512 --reward_weights 1 0.5"
        )
    )
    grpo: Any = job
    assert (grpo.grpo.loss_type, grpo.grpo.epsilon_high, grpo.grpo.kl_coefficient) == ("dapo", 0.28, 0.0)
    assert grpo.grpo.dynamic_sampling.max_batches == 4, "the first, and three further ones"
    assert [(r.type, r.weight) for r in grpo.rewards] == [("accuracy", 1.0), ("soft_overlong", 0.5)]
    assert grpo.rewards[1].cache_tokens == 512


def test_a_reward_plugin_is_found_by_the_name_it_registers(tmp_path):
    plugin = tmp_path / "plugin.py"
    plugin.write_text("class Short:\n    pass\n\norms['short'] = Short\n", encoding="utf-8")
    job = document(f"{GRPO} short --per_device_train_batch_size 8 --external_plugins {plugin}")
    assert job["rewards"][2] == {"type": "plugin", "name": "short", "target": f"{plugin}:Short"}


def test_simpo_has_the_likelihood_that_ms_swift_adds():
    losses = document(BASES["dpo"].replace("dpo", "simpo"))["dpo"]["losses"]
    assert losses == [{"type": "simpo", "beta": 2.0, "gamma": 1.0}, {"type": "sft", "weight": 1.0}]


# ---- mixtures of experts

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


@pytest.mark.parametrize(
    ("flags", "why"),
    [("", "dropout"), ("--lora_dropout 0 --deepspeed zero3", "ZeRO 3"), ("--deepspeed zero3_offload", "dropout and ZeRO 3")],
)
@pytest.mark.parametrize("model", ["Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-235B-A22B"])
def test_attention_alone_is_adapted_where_experts_cannot_be(model, flags, why):
    """The plan takes what is written, and refuses what the flags say word by word."""
    command = f"NPROC_PER_NODE=8 swift sft --model {model} --dataset vicgalle/alpaca-gpt4 --use_hf true --max_length 512 {flags}"
    job = document(command)
    assert job["model"]["lora"]["target_modules"] == ATTENTION
    obstacle = f"a mixture's experts are one parameter, which has no adapters with {why}"
    assert f"changed: target_modules: attention alone is adapted: {obstacle}" in notes(command)
    assert refusals(job) == []
    job["model"]["lora"]["target_modules"] = "all-linear"
    assert [line.partition(": ")[2].startswith("adapters of a mixture's experts") for line in refusals(job)] == [True]


def refusals(job: dict[str, Any]) -> list[str]:
    problems = plan_job(parse_job(job), parse_devices("8x80")).problems
    return [line for line in problems if line.startswith(("model.lora", "learner.zero_stage"))]


def test_experts_and_other_models_are_adapted_where_they_can_be(tmp_path):
    command = "swift sft --dataset org/d --lora_dropout"
    assert document(f"{command} 0 --model Qwen/Qwen3-30B-A3B")["model"]["lora"]["target_modules"] == "all-linear"
    assert document(f"{command} 0.1 --model {HYBRID}")["model"]["lora"]["target_modules"] == "all-linear"
    given = document(f"{command} 0.1 --model Qwen/Qwen3-30B-A3B --target_modules q_proj")
    assert given["model"]["lora"]["target_modules"] == ["q_proj"]
    (tmp_path / "config.json").write_text('{"num_experts_per_tok": 2}', encoding="utf-8")
    assert document(f"{command} 0.1 --model {tmp_path}")["model"]["lora"]["target_modules"] == ATTENTION
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert document(f"{command} 0.1 --model {tmp_path}")["model"]["lora"]["target_modules"] == "all-linear"


def test_a_mixture_is_not_quantised():
    command = "swift sft --model Qwen/Qwen3-30B-A3B --dataset org/d --quant_method bnb --quant_bits 4"
    assert "quantization" not in document(command)["model"]["lora"]
    told = [line.partition(": a mixture's")[0] for line in notes(command) if "cannot be quantised" in line]
    assert told == ["no equivalent: --quant_method bnb", "no equivalent: --quant_bits 4"]


# ---- inference


def test_lengths_that_the_command_does_not_give_are_told():
    command, begin = BASES["infer"], "ms-swift goes as far as the model can; here the default is"
    completion, prompt = "rollout.max_completion_tokens: 2048", "data.max_prompt_tokens: 1024"
    assert f"changed: max_new_tokens, max_length: {begin} {completion}, {prompt}" in notes(command)
    job: Any = parse_job(document(command))
    assert f"rollout.max_completion_tokens: {job.rollout.max_completion_tokens}" == completion
    assert f"data.max_prompt_tokens: {job.data.max_prompt_tokens}" == prompt
    assert f"changed: max_length: {begin} {prompt}" in notes(f"{command} --max_new_tokens 9")
    assert f"changed: max_new_tokens: {begin} {completion}" in notes(f"{command} --max_length 9")
    assert not any(begin in line for line in notes(f"{command} --max_model_len 99 --max_new_tokens 9"))


def test_lengths_of_a_chat_are_told():
    [line] = [line for line in notes(BASES["chat"]) if line.startswith("changed: max_new_tokens, vllm_max_model_len: ")]
    options = {option.name: option for option in chat_parser().params}
    assert f"--max-tokens {options['max_tokens'].default} for an answer" in line
    assert "--max-model-tokens 8192 for" in line and "default: 8192" in options["max_model_tokens"].help
    assert not any("as the model can" in line for line in notes(f"{BASES['chat']} --max_new_tokens 9 --max_model_len 99"))


def chat_parser() -> Any:
    group: Any = get_command(app)
    return group.commands["chat"]


def test_a_chat_gets_the_engine_that_is_asked_for():
    given = "--tensor_parallel_size 2 --gpu_memory_utilization 0.5 --torch_dtype float16 --seed 7"
    done = convert(f"{BASES['chat']} {given} --max_length 9 --result_path a.jsonl")
    assert isinstance(done.result, list)
    words = chat_parser().make_context("chat", done.result[2:]).params
    assert [words[name] for name in ("tensor_parallel_size", "gpu_memory_utilization", "dtype", "seed")] == [2, 0.5, "float16", 7]
    assert "no equivalent: --max_length 9: `rlflow chat` has nothing like it" in map(str, done.notes)
    assert "no equivalent: --result_path a.jsonl: `save` in the chat writes its conversations" in map(str, done.notes)


@pytest.mark.parametrize(("command", "flag"), [(BASES["chat"], "--hub"), (BASES["export"], "--source-hub")])
def test_commands_take_models_of_hugging_face(command, flag):
    line = f"from Hugging Face; without --use_hf true ms-swift takes ModelScope (here: {flag} modelscope)"
    assert f"changed: hub: the model comes {line}" in notes(command)
    assert f"changed: --use_hf false: the model comes {line}" in notes(f"{command} --use_hf false")
    for there in (notes(f"{command} --use_hf true"), notes(f"USE_HF=1 {command}")):
        assert not any("ModelScope" in note for note in there)
    assert "same: --use_hf true: Hugging Face is the hub" in notes(f"{command} --use_hf true")


def test_a_push_to_modelscope_is_told_where_the_model_comes_from_too():
    told = [line for line in notes(f"{BASES['export']} --push_to_hub true --hub_model_id a/b") if "ModelScope" in line]
    assert [line.split(" from ")[0].split(" to ")[0] for line in told] == [
        "changed: hub: the model comes",
        "changed: use_hf: pushed",
    ]


@pytest.mark.parametrize(
    ("base", "flag", "remedy"),
    [
        ("infer", "--logprobs true", "a server of the exported model"),
        ("infer", "--top_logprobs 5", "a server of the exported model"),
        ("infer", "--structured_outputs_regex a+", "a reward of type format with this pattern and infer.min_reward: 1"),
        ("infer", "--preserve_thinking true", "data.chat_template takes another template"),
        ("chat", "--preserve_thinking true", "data.chat_template takes another template"),
        ("sft", "--preserve_thinking true", "data.chat_template takes another template"),
        ("sft", "--agent_template hermes", "data.chat_template takes another one"),
        ("sft", "--cached_dataset a", "name the rows that it was made of in data.sources"),
        ("megatron", "--cached_dataset a", "name the rows that it was made of in data.sources"),
    ],
)
def test_flags_without_equivalent_say_what_to_do(base, flag, remedy):
    [line] = [line for line in notes(f"{BASES[base]} {flag}") if line.startswith(f"no equivalent: {flag}: ")]
    assert remedy in line


# ---- data


def data(extra: str, *, given: str = "org/d") -> dict[str, Any]:
    return document(SFT.replace("org/d", given) + " --use_hf true " + extra)["data"]


def test_without_use_hf_a_data_set_is_read_where_ms_swift_reads_it(tmp_path):
    own = tmp_path / "own.jsonl"
    own.write_text("{}")
    names = f"org/d:s#5 HF::org/e MS::org/f AI-ModelScope/alpaca-gpt4-data-en#7 {own}#3 {own}"
    command = SFT.replace("org/d", names)
    known = ["HF::org/e", "MS::org/f", "vicgalle/alpaca-gpt4#7", f"{own}#3", str(own)]
    assert document(command)["data"]["sources"] == ["MS::org/d:s#5", *known]
    assert any("MS::" in line and "--dataset org/d:s#5: is read from ModelScope" in line for line in notes(command))
    assert document(f"USE_HF=1 {command}")["data"]["sources"] == ["org/d:s#5", *known]


def test_what_is_held_out():
    assert data("--split_dataset_ratio 0.1")["held_out"] == 0.1
    two = data("--split_dataset_ratio 0.1", given="org/d org/e#5")
    assert [source["held_out"] for source in two["sources"]] == [0.1, 0.1] and "held_out" not in two
    validation = data("--split_dataset_ratio 0.1 --val_dataset org/v#9")
    assert validation["sources"][1] == {"type": "hub", "id": "org/v", "sample": 9, "held_out": "all"}
    assert "held_out" not in validation
    assert data("--val_dataset org/v --eval_strategy no")["sources"] == ["org/d"]


def test_mixing():
    mixed = data("--interleave_prob 0.7 0.3 --stopping_strategy all_exhausted", given="org/d org/e")
    assert mixed["mix"] == {"weights": [0.7, 0.3], "stop": "all_exhausted"}


def test_streaming():
    flags = "--streaming true --shuffle_buffer_size 500 --max_steps 10"
    job = document(f"{SFT} {flags}")
    assert (job["data"]["streaming"], job["steps"]) == ({"buffer_rows": 500}, 10)
    assert parse_job(job).data.streaming == StreamingSpec(buffer_rows=500)
    grpo = f"{BASES['grpo']} {flags}"
    assert "streaming" not in document(grpo)["data"]
    assert (
        "no equivalent: --streaming true: a job of kind grpo loads its rows first: data sets are loaded before training"
        in notes(grpo)
    )
    assert "no equivalent: --shuffle_buffer_size 500: rows are shuffled as a whole" in notes(grpo)


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ("", "without max_steps the rows must be counted"),
        ("--max_steps 9 --split_dataset_ratio 0.1", "a share of rows is held out"),
        ("--max_steps 9 --dataset org/a org/b --interleave_prob 0.5 0.5 --stopping_strategy all_exhausted", "stopping_strategy"),
        ("--max_steps 9 --dataset org/a#50", "a number of rows is taken of a data set"),
    ],
)
def test_what_cannot_be_streamed_is_loaded(flags, why):
    sft = re.sub(r"--dataset \S+", "", SFT) if "--dataset" in flags else SFT
    command = f"{sft} --streaming true {flags}"
    parse_job(document(command))
    assert "streaming" not in document(command)["data"]
    assert any(note.startswith(f"no equivalent: --streaming true: {why}") for note in notes(command))


@pytest.mark.parametrize(("strategy", "overlong"), [("delete", "drop"), ("left", "truncate_left"), ("right", "truncate_right"),
                                                    ("split", "split")])  # fmt: skip
def test_truncation(strategy, overlong):
    assert data(f"--truncation_strategy {strategy}")["overlong"] == overlong
    assert document(f"{BASES['dpo']} --truncation_strategy {strategy}")["data"]["overlong"] == "drop"


def test_loss_weights():
    found = data("--loss_scale last_round+hermes+qwen+ignore_empty_think")
    assert (found["loss"], found["loss_weights"], found["ignore_empty_think"]) == ("last_round", ["hermes", "qwen"], True)
    assert data("--loss_scale react")["loss_weights"] == ["react"]


def test_names_for_self_cognition():
    found = data("--model_name 小流 Flow --model_author Brook", given="swift/self-cognition:qwen3#600")
    assert found["sources"] == ["swift/self-cognition:qwen3#600"]
    assert (found["model_name"], found["model_author"]) == ({"zh": "小流", "en": "Flow"}, "Brook")
    assert any("--model_name Flow" in line for line in notes(f"{SFT} --model_name Flow")), "nothing uses it"


def test_bookkeeping():
    run = document(f"{SFT} --split_dataset_ratio 0.1 --eval_steps 5 --save_only_model true --early_stop_interval 2")["run"]
    assert run["keep_only_models"] is True
    assert run["early_stopping"] == {"metric": "eval_loss", "mode": "min", "patience": 2}
    assert document(f"{BASES['megatron']} --no_save_optim true")["run"]["keep_only_models"] is True
    stopped = notes(f"{SFT} --early_stop_interval 2")
    assert "warning: --early_stop_interval 2: nothing is evaluated without held-out rows; set data.held_out" in stopped


# ---- mistakes


@pytest.mark.parametrize(
    ("command", "lines"),
    [
        (f"{SFT} --learning_rat 1 --epoch 2", ["--learning_rat: unknown flag of swift sft; did you mean --learning_rate?",
                                               "--epoch: unknown flag of swift sft"]),
        (f"{SFT} --learning_rate fast", ["--learning_rate fast: could not convert string to float: 'fast'"]),
        (f"{SFT} --packing perhaps", ["--packing perhaps: is true or false, not perhaps"]),
        (f"{SFT} --seed 1 --seed 2", ["--seed: given twice"]),
        (f"{SFT} --loss_scale mine", ["--loss_scale mine: mine has no equivalent; known: default, last_round, all, each with or "
            "without +ignore_empty_think, +hermes, +qwen, +react, +agentflan, +alpha_umi, +ignore_think_prefix; convert without "
            "it, and write its patterns and weights as data.loss_weights"]),
        (f"{SFT} --interleave_prob 0.5 0.5", ["--interleave_prob 0.5 0.5: 2 probabilities for 1 data sets"]),
        (f"{SFT} --truncation_strategy end", ["--truncation_strategy end: is one of delete, left, right, split"]),
        (SFT.replace("org/d", "swift/self-cognition"), ["--model_name: missing; swift/self-cognition has a place for it"]),
        ("swift sft train.yaml", ["swift sft train.yaml: configuration files are not read; give the flags themselves"]),
        ("swift sft --dataset org/d", ["--model: missing"]),
        ("swift sft --model org/m", ["--dataset: missing"]),
        ("swift sft --model org/m --cached_dataset a", ["--dataset: missing; a cached data set holds tokens: name the rows that "
                                                        "it was made of"]),
        (f"{GRPO} --num_generations 3", ["--num_generations 3: the 1 completions of a generation cannot be divided by it, or by "
                                         "the 1 of an optimiser step"]),
        ("swift export --adapters a --quant_bits 4", ["--quant_method, --quant_bits: have no equivalent; models are exported as "
            "they are; quantise the exported directory with the tool that serves it"]),
    ],
)  # fmt: skip
def test_a_mistake_names_the_flag(command, lines):
    with pytest.raises(UserError) as caught:
        convert(command)
    assert str(caught.value).splitlines()[0] == lines[0]
    assert len(str(caught.value).splitlines()) == len(lines)


def rlflow(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "rlflow.cli", "convert", *arguments], input=text, capture_output=True, text=True)


def test_the_command_line(tmp_path):
    """The spec on stdout, notes on stderr; from an argument, a file or stdin."""
    shown = rlflow(f"{SFT} --logging_steps 5")
    assert shown.returncode == 0
    assert shown.stdout.startswith("# swift sft --model org/m ") and "\nkind: sft\n" in shown.stdout
    assert "no equivalent: --logging_steps 5: every step is logged\n" in shown.stderr
    script = tmp_path / "train.sh"
    script.write_text(f"{SFT} --logging_steps 5\n", encoding="utf-8")
    assert rlflow(str(script)).stdout == rlflow("-", text=script.read_text()).stdout == shown.stdout
    wrong = rlflow(f"{SFT} --nope 1", "--swift-version", "4")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("--nope: unknown flag of swift sft")
    assert rlflow(SFT, "--swift-version", "2").stderr == "--swift-version 2: is 3.6 or 4\n"


def test_the_first_example_of_the_page_can_be_pasted():
    page = (Path(rlflow_package.__file__).parents[1] / "docs" / "convert.md").read_text(encoding="utf-8")
    [program, verb, command, *_] = shlex.split(page.partition("```bash\n")[2].partition("```")[0])
    assert (program, verb) == ("rlflow", "convert")
    job: Any = parse_job(document(command))
    assert (job.kind, job.prompts_per_step, job.learner.num_ranks) == ("grpo", 8, 8)
    assert plan_job(job, parse_devices("8x80")).problems == []


def test_a_checkpoint_names_its_model(tmp_path):
    command = f"swift infer --adapters {tmp_path} --temperature 0"
    assert convert(command).result == ["rlflow", "chat", "<model>", "--adapter", str(tmp_path), "--temperature", "0"]
    assert any("write it in the place of <model>" in line for line in notes(command))
    (tmp_path / "args.json").write_text('{"model": "Qwen/Qwen3-8B"}', encoding="utf-8")
    assert convert(command).result == ["rlflow", "chat", "Qwen/Qwen3-8B", "--adapter", str(tmp_path), "--temperature", "0"]
