"""Flags to fields: no flag is dropped in silence, defaults are those of the version, mistakes are one line each."""

import re
import subprocess
import sys
from typing import Any

import pytest

from rlflow.convert import flags
from rlflow.convert.convert import TABLES, convert
from rlflow.errors import UserError
from rlflow.spec.data import StreamingSpec
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


def test_a_checkpoint_names_its_model(tmp_path):
    command = f"swift infer --adapters {tmp_path} --temperature 0"
    assert convert(command).result == ["rlflow", "chat", "<model>", "--adapter", str(tmp_path), "--temperature", "0"]
    assert any("write it in the place of <model>" in line for line in notes(command))
    (tmp_path / "args.json").write_text('{"model": "Qwen/Qwen3-8B"}', encoding="utf-8")
    assert convert(command).result == ["rlflow", "chat", "Qwen/Qwen3-8B", "--adapter", str(tmp_path), "--temperature", "0"]
