"""Batch inference on a real engine, as a user runs it: killed in the middle, and run again."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from rlflow.data.characters import build_character_tokenizer
from rlflow.learner.load_model import create_random_model
from rlflow.spec.model import RandomModelSpec
from tests.integration.job_runs import MODEL, environment, run, start, write_job

pytestmark = pytest.mark.integration
ROWS = 100


def spec(folder):
    return {
        "kind": "infer",
        "run": {"name": "answers"},
        "model": MODEL,
        "data": {"sources": [{"type": "file", "path": "rows.jsonl"}], "max_prompt_tokens": 32},
        "rollout": {"max_completion_tokens": 12, "max_num_seqs": 8, "num_workers": 1},
        "infer": {"output": "out.jsonl", "num_samples": 2, "drop_truncated": True},
    }


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def test_a_killed_run_goes_on_without_loss_or_repetition(tmp_path, ray_head):
    rows = [json.dumps({"messages": [{"role": "user", "content": f"{i}+1"}], "n": i}) for i in range(ROWS)]
    rows[7] = '{"messages": '
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "answers.yaml").write_text(json.dumps(spec(tmp_path)))
    out, errors = tmp_path / "out.jsonl", tmp_path / "out.errors.jsonl"

    process = start(tmp_path, "answers.yaml")
    while not errors.exists() or len(read(errors)) + len(read(out)) < 40:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    half = len(read(out)) + len(read(errors))
    assert half < 2 * ROWS - 1, "it was killed too late to see anything"
    with out.open("a") as file:
        file.write('{"messages": [{"role": "us')

    result = run(tmp_path, "answers.yaml", env=ray_head.driver_env)  # its own cluster was killed with it
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

    again = subprocess.run(
        [sys.executable, "-m", "rlflow.cli", "infer", "answers.yaml", "infer.num_samples=3"],
        cwd=tmp_path,
        env=environment(PYTHONPATH=os.getcwd()),
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 2 and "holds a run of another spec (other at infer.num_samples)" in again.stderr


def adapted_model(folder):
    """Writes `base` and `adapter`; returns the two together."""
    tokenizer = build_character_tokenizer(MODEL["random"]["characters"])
    config = MODEL["random"]["config"] | {"initializer_range": 1.0}  # so that one token is much likelier than the others
    random = RandomModelSpec(config=config, characters=MODEL["random"]["characters"])
    create_random_model(random, "float32", tokenizer, folder / "base")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "base"), LoraConfig(r=2, target_modules="all-linear"))
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn_like(parameter)
    adapted.save_pretrained(folder / "adapter")
    return adapted, tokenizer


def test_two_engines_answer_with_the_adapters_merged_and_the_best_answer_is_kept(tmp_path, ray_head):
    model, tokenizer = adapted_model(tmp_path)
    rows = [{"messages": [{"role": "user", "content": f"{i}+{i}"}]} for i in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = spec(tmp_path) | {"model": {"path": "base", "dtype": "float32"}, "adapter": "adapter"}
    # The lowest temperature that vLLM samples at: all samples of a row are the likeliest answer, which transformers tells too.
    answers["rollout"] |= {"num_workers": 2, "temperature": 0.01, "max_completion_tokens": 4}
    answers["infer"] = {"output": "best.jsonl", "num_samples": 3, "keep": "best", "response_prefix": "7"}
    answers["rewards"] = [{"type": "plugin", "target": "digits.py:digits"}]

    result = run(tmp_path, write_job(tmp_path, answers), env=ray_head.driver_env)
    assert result.returncode == 0, result.stdout + result.stderr
    found = {record["row_id"]: record for record in read(tmp_path / "best.jsonl")}
    assert len(found) == len(rows)
    compared = 0
    for number, row in enumerate(rows):
        record = found[f"rows.jsonl:{number + 1}"]
        answer = record["messages"][-1]["content"]
        assert record["reward"] == pytest.approx(sum(c.isdigit() for c in answer) / 4), "of the answer with its prefix"
        expected, margin = likeliest_answer(model, tokenizer, row["messages"], "7")
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
