"""Batch inference on a real engine, as a user runs it: killed in the middle, and run again."""

import json
import os
import signal
import time

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from rlflow.data.characters import build_character_tokenizer
from rlflow.learner.load_model import create_random_model
from rlflow.spec.model import RandomModelSpec
from tests.integration.job_runs import MODEL, run, start, write_job

pytestmark = pytest.mark.integration
ROWS = 100
FLAGS = (
    *("--data", "rows.jsonl", "--output", "out.jsonl", "--max-prompt-tokens", "32", "--max-tokens", "12", "--num-samples", "2"),
    *("--drop-truncated", "--name", "answers", "rollout.max_num_seqs=8"),
)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def test_a_killed_run_goes_on_without_loss_or_repetition(tmp_path, ray_head):
    rows = [json.dumps({"messages": [{"role": "user", "content": f"{i}+1"}], "n": i}) for i in range(ROWS)]
    rows[7] = '{"messages": '
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    create_random_model(RandomModelSpec(**MODEL["random"]), "float32", tokenizer(), tmp_path / "model")
    out, errors = tmp_path / "out.jsonl", tmp_path / "out.errors.jsonl"

    process = start(tmp_path, "infer", "model", *FLAGS, module="rlflow.cli")
    while not errors.exists() or len(read(errors)) + len(read(out)) < 40:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    half = len(read(out)) + len(read(errors))
    assert half < 2 * ROWS - 1, "it was killed too late to see anything"
    with out.open("a") as file:
        file.write('{"messages": [{"role": "us')

    # Its own cluster was killed with it.
    result = run(tmp_path, "infer", "model", *FLAGS, module="rlflow.cli", env=ray_head.driver_env | {"COLUMNS": "120"})
    assert result.returncode == 0, result.stdout + result.stderr
    answers, rest = read(out), read(errors)
    seen = [(record["row_id"], record.get("sample")) for record in answers + rest]
    expected = [(f"rows.jsonl:{i + 1}", sample) for i in range(ROWS) if i != 7 for sample in (0, 1)]
    assert sorted(seen, key=str) == sorted([*expected, ("rows.jsonl:8", None)], key=str)
    assert all(record["finish_reason"] == "stop" for record in answers)
    assert {record.get("dropped", "bad row") for record in rest} - {"empty"} == {"truncated", "bad row"}
    assert all(record["messages"][0]["content"] == f"{record['n']}+1" for record in answers)
    assert f"of {ROWS} rows are done already" in result.stdout and "tok/s" in result.stdout
    assert json.loads((tmp_path / "runs/answers/status.json").read_text())["state"] == "succeeded"
    [line] = [line for line in result.stdout.splitlines() if line.startswith("│ answers ")]
    asked = [record for record in answers + rest if "dropped" in record or "messages" in record]
    prompt_tokens, tokens = (sum(record[name] for record in asked) for name in ("prompt_tokens", "completion_tokens"))
    figures = [int(figure.replace(",", "")) for figure in line.strip("│").split("│")[1:-1]]
    assert figures == [ROWS, len(answers), len(rest) - 1, 1, prompt_tokens // 2, tokens], "a prompt is read once"
    assert f"answers answers: {out}\n" in result.stdout

    again = run(tmp_path, "infer", "model", *FLAGS, "--num-samples", "3", module="rlflow.cli")
    assert again.returncode == 2 and "holds a run of another spec (other at --num-samples)" in again.stderr


def tokenizer():
    return build_character_tokenizer(MODEL["random"]["characters"])


def adapted_model(folder):
    """Writes `base` and `adapter`; returns the two together."""
    config = MODEL["random"]["config"] | {"initializer_range": 1.0}  # so that one token is much likelier than the others
    random = RandomModelSpec(config=config, characters=MODEL["random"]["characters"])
    create_random_model(random, "float32", tokenizer(), folder / "base")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "base"), LoraConfig(r=2, target_modules="all-linear"))
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn_like(parameter)
    adapted.save_pretrained(folder / "adapter")
    return adapted


def test_two_engines_answer_with_the_adapters_merged_and_the_best_answer_is_kept(tmp_path, ray_head):
    model = adapted_model(tmp_path)
    rows = [{"messages": [{"role": "user", "content": f"{i}+{i}"}]} for i in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = {
        "kind": "infer",
        "run": {"name": "answers"},
        "model": {"path": "base", "dtype": "float32"},
        "adapter": "adapter",
        "data": {"sources": [{"type": "file", "path": "rows.jsonl"}], "max_prompt_tokens": 32},
        # The lowest temperature that vLLM samples at: all samples of a row are the likeliest, which transformers tells too.
        "rollout": {"num_workers": 2, "temperature": 0.01, "max_completion_tokens": 4, "max_num_seqs": 8},
        "infer": {"output": "best.jsonl", "num_samples": 3, "keep": "best", "response_prefix": "7"},
        "rewards": [{"type": "plugin", "target": "digits.py:digits"}],
    }

    result = run(tmp_path, write_job(tmp_path, answers), env=ray_head.driver_env)
    assert result.returncode == 0, result.stdout + result.stderr
    found = {record["row_id"]: record for record in read(tmp_path / "best.jsonl")}
    assert len(found) == len(rows)
    compared = 0
    for number, row in enumerate(rows):
        record = found[f"rows.jsonl:{number + 1}"]
        answer = record["messages"][-1]["content"]
        assert record["reward"] == pytest.approx(sum(c.isdigit() for c in answer) / 4), "of the answer with its prefix"
        expected, margin = likeliest_answer(model, tokenizer(), row["messages"], "7")
        if margin > 0.2:
            assert answer == expected
            compared += 1
    assert compared >= len(rows) / 2


def likeliest_answer(model, tokenizer, messages, prefix):
    """The prefix and four tokens at most, and by how much the logit of each is at least above the next one."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + prefix
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True)
    best, next_best = torch.stack([logits[0].topk(2).values for logits in out.logits]).unbind(dim=1)
    answer = tokenizer.decode(out.sequences[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    return prefix + answer, (best - next_best).min().item()
