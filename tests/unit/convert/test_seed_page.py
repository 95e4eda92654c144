"""Every command of the page that ms-swift's users follow for Qwen3 converts, validates and plans.

`commands/<name>.sh` is a command as it stands there, `commands/<name>.txt` what it becomes.
"""

import json
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from rlflow.cli import app
from rlflow.convert.convert import Converted, convert
from rlflow.data.characters import build_character_tokenizer
from rlflow.data.sources import load_sources
from rlflow.data.tokenized import Prompt, tokenize_prompts
from rlflow.jobs.plan import Plan, parse_devices, plan_job
from rlflow.rewards.accuracy import AccuracyReward
from rlflow.rewards.api import RewardSample
from rlflow.spec.jobs import GrpoJob
from rlflow.spec.load import parse_job
from rlflow.spec.rewards import AccuracySpec

COMMANDS = Path(__file__).with_name("commands")
SPECS = ("distill", "full_sft", "grpo", "megatron", "self_awareness")
OTHERS = ("chat_adapter", "chat_no_thinking", "chat_thinking", "merge", "push")

PARSED = {
    "chat_adapter": {"model": "<model>", "adapter": "output/vx-xxx/checkpoint-xxx", "temperature": 0.0, "max_tokens": 2048},
    "chat_no_thinking": {"model": "Qwen/Qwen3-8B", "response_prefix": "<think>\\n\\n</think>\\n\\n", "max_model_tokens": 8192},
    "chat_thinking": {"model": "Qwen/Qwen3-8B", "response_prefix": "", "max_tokens": 2048, "max_model_tokens": 8192},
    "merge": {"source": "output/checkpoint-xxx", "merge": True, "output": Path("output/checkpoint-xxx-merged"), "push": None},
    "push": {"source": "output/checkpoint-xxx", "merge": False, "push": "<hub-model-id>", "hub": "modelscope", "token": None},
}
"""What the command-line parser makes of them."""


def converted(name: str, gpus: int | None = None) -> Converted:
    return convert((COMMANDS / f"{name}.sh").read_text(encoding="utf-8"), gpus=gpus)


def document(name: str, gpus: int | None = None) -> dict[str, Any]:
    result = converted(name, gpus).result
    assert isinstance(result, dict)
    return result


def plan(name: str, devices: str, **replaced: Any) -> Plan:
    return plan_job(parse_job(document(name) | replaced), parse_devices(devices))


def warnings(name: str) -> list[str]:
    return [str(note) for note in converted(name).notes if note.kind == "warning"]


def test_all_commands_are_here():
    assert sorted(path.stem for path in COMMANDS.glob("*.sh")) == sorted(SPECS + OTHERS)


@pytest.mark.parametrize("name", SPECS + OTHERS)
def test_what_it_becomes(name):
    comment, _, result = str(converted(name)).partition("\n")
    assert comment.startswith("# ")
    assert result == (COMMANDS / f"{name}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", OTHERS)
def test_it_is_a_command_line_of_rlflow(name):
    """Every word is taken by the verb's own parser: an unknown verb, flag or value would raise."""
    given = command_line(name)
    assert {flag: given[flag] for flag in PARSED[name]} == PARSED[name]


def command_line(name: str) -> dict[str, Any]:
    """Values by parameter of the printed words, read by the command that they call, which is not run."""
    _, _, printed = str(converted(name)).partition("\n")
    program, verb, *words = shlex.split(printed)
    assert program == "rlflow"
    group: Any = get_command(app)
    return group.commands[verb].make_context(verb, words).params


@pytest.mark.parametrize("name", SPECS)
def test_it_is_a_spec(name):
    result = document(name)
    assert parse_job(result).kind == result["kind"]


def test_distillation_is_placed_on_two_engines_of_two_gpus():
    planned = plan("distill", "4x80")
    assert planned.problems == []
    assert planned.placement is not None and planned.memory is not None
    assert [len(seat.devices) for seat in planned.placement.seats_of("rollout")] == [2, 2]
    assert planned.placement.seats_of("learner") == []
    assert planned.memory.peak < 0.9 * 80


def test_self_awareness_fits_the_22_gb_that_the_page_says():
    planned = plan("self_awareness", "1x24")
    if find_spec("modelscope") is None:
        [problem] = planned.problems
        assert problem.startswith("data.sources[0].hub: ModelScope needs its package")
    else:
        assert planned.problems == []
    assert planned.memory is not None and planned.memory.peak < 24


def test_full_training_needs_only_a_data_set(tmp_path):
    planned = plan("full_sft", "4x60")
    assert len(planned.problems) == 1 and planned.problems[0].startswith("data.sources[0].path: there is no file <your-dataset>")
    data = document("full_sft")["data"] | {"sources": ["vicgalle/alpaca-gpt4"]}
    assert plan("full_sft", "4x60", data=data).problems == []


def test_grpo_is_placed_on_8_gpus_that_are_not_here():
    planned = plan("grpo", "8x80")
    assert planned.problems == []
    assert planned.placement is not None and planned.memory is not None
    learners, engines = planned.placement.seats_of("learner"), planned.placement.seats_of("rollout")
    assert [seat.devices for seat in learners] == [seat.devices for seat in engines] == [(gpu,) for gpu in range(8)]
    assert planned.memory.rollout == pytest.approx(0.4 * 80), "vllm_gpu_memory_utilization"
    assert planned.memory.peak < 70, "the page says 70 GB"


def test_grpo_warns_of_its_batch_of_one_prompt():
    [line] = [line for line in warnings("grpo") if line.startswith("warning: batch size")]
    assert line == (
        "warning: batch size: ms-swift counts completions: 8 processes x 2 x 1 accumulated are 16, which at num_generations 16 "
        "makes 1 prompt a step; so 7 of 8 engines have nothing to sample: set prompts_per_step to 8 or more"
    )


def test_megatron_on_its_two_nodes_of_8():
    job = parse_job(document("megatron", gpus=16))
    assert (job.learner.num_ranks, job.learner.expert_parallel) == (16, 8)
    planned = plan_job(job, parse_devices("16x80"))
    assert planned.problems == []
    assert planned.facts is not None and planned.facts.num_experts == 128
    assert any("give --gpus N" in line for line in warnings("megatron")), "the command does not say how many there are"


def test_a_token_is_never_shown(tmp_path):
    command = "HF_TOKEN=hf_secret swift export --adapters a --push_to_hub true --hub_model_id o/n --hub_token ms-secret"
    done = convert(command)
    shown = "\n".join([str(done), *map(str, done.notes)])
    assert "secret" not in shown


def test_rows_as_numina_math_has_them_become_prompts_and_rewards(tmp_path):
    """The trailing assistant turn is dropped; `solution`, a whole text, is what completions are judged by."""
    rows = [
        {
            "problem": f"What is {n} + {n}?",
            "solution": f"We add. The answer is \\boxed{{{2 * n}}}.",
            "messages": [
                {"role": "user", "content": f"What is {n} + {n}?"},
                {"role": "assistant", "content": f"print({n} + {n}) gives \\boxed{{{2 * n}}}."},
            ],
        }
        for n in range(1, 9)
    ]
    path = tmp_path / "numina.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    data = document("grpo")["data"] | {"sources": [f"{path}#5"]}
    job = parse_job(document("grpo") | {"data": data})
    assert isinstance(job, GrpoJob)
    characters = build_character_tokenizer("".join(map(chr, range(32, 127))))
    prompts = tokenize_prompts(load_sources(job.data, tmp_path), characters, job.data, tmp_path)
    assert len(prompts) == 5
    judge = AccuracyReward(AccuracySpec.model_validate(job.rewards[0].model_dump()))
    for prompt in (prompts[number] for number in range(5)):
        assert characters.decode(prompt.prompt_ids) == prompt.text
        assert prompt.text.endswith("?<|im_end|>\n<|im_start|>assistant\n") and "gives" not in prompt.text
        gold = int(prompt.columns["solution"].partition("{")[2].partition("}")[0])
        assert [judge(sample(prompt, f"So \\boxed{{{answer}}}")) for answer in (gold, gold + 1)] == [1.0, 0.0]


def sample(prompt: Prompt, completion: str) -> RewardSample:
    return RewardSample(0, 0, list(prompt.messages), prompt.text, completion, len(completion), [], "stop", prompt.columns)
