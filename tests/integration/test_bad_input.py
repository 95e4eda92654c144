"""Every mistake of the issue's list ends before training: exit code 2, and one line that says where and what to do."""

import json
import re

import pytest

from tests.integration.job_runs import grpo_spec, run, sft_spec, write_job

pytestmark = pytest.mark.integration


def refused(folder, spec, *overrides, lines: int = 1) -> str:
    result = run(folder, write_job(folder, spec), *overrides, timeout_s=120)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert len(result.stderr.strip().splitlines()) == lines, result.stderr
    return result.stderr


def rows(folder, *values):
    (folder / "rows.jsonl").write_text("".join(v if isinstance(v, str) else json.dumps(v) + "\n" for v in values))
    return {"sources": ["rows.jsonl"], "max_prompt_tokens": 32, "max_tokens": 48}


def chat(question, answer="1"):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def test_wrong_spec(tmp_path):
    spec = sft_spec(batch_siez=3)
    del spec["batch_size"]
    assert re.search(r"batch_siez: unknown field; did you mean batch_size", refused(tmp_path, spec))


def test_several_mistakes_are_all_named(tmp_path):
    spec = grpo_spec(steps=0, prompts_per_step="many")
    assert "steps" in (message := refused(tmp_path, spec, lines=2)) and "prompts_per_step" in message


def test_missing_file(tmp_path):
    spec = sft_spec(data={"sources": ["nowhere.jsonl"]})
    assert "data.sources[0].path" in (message := refused(tmp_path, spec)) and "nowhere.jsonl" in message


def test_malformed_row(tmp_path):
    spec = sft_spec(data=rows(tmp_path, chat("1+1"), {"messages": [{"role": "user", "content": ""}]}))
    assert re.search(r"rows\.jsonl, row 2", refused(tmp_path, spec))


def test_broken_json_line(tmp_path):
    spec = sft_spec(data=rows(tmp_path, chat("1+1"), "{not json\n"))
    assert re.search(r"rows\.jsonl.*row 2", refused(tmp_path, spec))


def test_prompt_longer_than_the_limit(tmp_path):
    spec = grpo_spec(data=rows(tmp_path, chat("1+1"), chat("1" * 60)))
    message = refused(tmp_path, spec)
    assert "row 2" in message and "data.max_prompt_tokens" in message


def test_tokenizer_without_chat_template(tmp_path):
    from transformers import AutoTokenizer

    from rlflow.data.characters import build_character_tokenizer

    tokenizer = build_character_tokenizer("0123456789+")
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "bare")
    assert AutoTokenizer.from_pretrained(tmp_path / "bare").chat_template is None
    spec = sft_spec()
    random = {**spec["model"]["random"], "tokenizer": "bare"}
    del random["characters"]
    message = refused(tmp_path, {**spec, "model": {"dtype": "float32", "random": random}})
    assert "chat template" in message and "data.chat_template" in message


def test_plugin_that_does_not_import(tmp_path):
    (tmp_path / "broken.py").write_text("import a_module_that_is_not_there\n")
    spec = grpo_spec(rewards=[{"type": "plugin", "target": "broken.py:score"}])
    assert "broken.py:score" in (message := refused(tmp_path, spec)) and "a_module_that_is_not_there" in message


def test_more_gpus_than_there_are(tmp_path):
    spec = sft_spec()
    spec["run"]["device"] = "gpu"
    spec["learner"] = {"num_ranks": 8}
    assert "GPU" in refused(tmp_path, spec)


def test_more_workers_than_the_machine_holds(tmp_path):
    spec = sft_spec()
    spec["learner"] = {"num_ranks": 512}
    assert "learner.num_ranks" in refused(tmp_path, spec)


def test_missing_run(tmp_path):
    spec = grpo_spec(model={"from_run": "never"})
    assert "model.from_run" in refused(tmp_path, spec)


@pytest.mark.parametrize("kind", ["dpo", "rm", "kto"])
def test_malformed_preferences(tmp_path, kind):
    good = {"prompt": "1+1", "chosen": "2", "rejected": "3"}
    spec = sft_spec(data=rows(tmp_path, good, {**good, "prompt": "1+2", "rejected": "2"}), kind=kind)
    if kind == "kto":
        spec["kto"] = {"unpair_rows": True}
    assert re.search(r"rows\.jsonl, row 2: the chosen and the rejected answer are the same", refused(tmp_path, spec))


def test_preferences_without_rejected_answer(tmp_path):
    spec = sft_spec(data=rows(tmp_path, chat("1+1")), kind="dpo")
    assert re.search(r"rows\.jsonl.*rejected_response", refused(tmp_path, spec))


def test_a_reward_model_that_is_none(tmp_path):
    spec = grpo_spec(rewards=[{"type": "model", "path": "runs/nowhere/model"}])
    assert "rewards[0].path: there is no directory runs/nowhere/model" in refused(tmp_path, spec)
    (tmp_path / "empty").mkdir()
    spec = grpo_spec(rewards=[{"type": "model", "path": "empty"}])
    assert "reward 'model'" in (message := refused(tmp_path, spec)) and "config.json" in message
