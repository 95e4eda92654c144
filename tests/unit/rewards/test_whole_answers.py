"""What a reward worker makes of sampled tokens, where the prompt has begun the answer."""

import numpy as np
import pytest
import ray

from rlflow.actors.reward import RewardActor, RewardSetup
from rlflow.data.characters import build_character_tokenizer
from rlflow.data.chat import set_template
from rlflow.data.tokenized import tokenize_prompts
from rlflow.jobs.prepare import PromptRows
from rlflow.rollout.completions import Completion, CompletionGroup
from rlflow.spec.data import DataSpec
from rlflow.spec.rewards import FormatSpec

THINKING = "{% for m in messages %}{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}A:<think>\n{% endif %}"
ANSWER = "1+1</think><answer>2</answer>"


@pytest.fixture
def tokenizer(tmp_path):
    tokenizer = build_character_tokenizer("0123456789+<>/:abcdefghijklmnopqrstuvwxyzA\n")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tokenizer


def prompts(tmp_path, tokenizer, template):
    from rlflow.data.sources import load_sources

    (tmp_path / "rows.jsonl").write_text('{"query": "1+1"}\n')
    (tmp_path / "template.jinja").write_text(template)
    spec = DataSpec.model_validate({"sources": [str(tmp_path / "rows.jsonl")], "chat_template": str(tmp_path / "template.jinja")})
    set_template(tokenizer, "model", spec)
    return PromptRows(tokenize_prompts(load_sources(spec, tmp_path / "cache"), tokenizer, spec, tmp_path / "cache"))


@pytest.mark.parametrize(
    ("template", "value", "start"), [(THINKING, 1.0, "<think>\n"), (THINKING.replace("<think>\n", ""), 0.0, "")]
)
def test_a_thinking_block_that_the_template_opens_belongs_to_the_answer(tmp_path, monkeypatch, tokenizer, template, value, start):
    monkeypatch.setattr(ray, "get_gpu_ids", list)
    ids = np.asarray(tokenizer(ANSWER, add_special_tokens=False)["input_ids"], np.int32)
    completion = Completion(ids, np.zeros(len(ids), np.float32), "stop")
    worker = RewardActor("reward-0", RewardSetup((FormatSpec(),), str(tmp_path / "tokenizer"), 64, str(tmp_path)))
    row = prompts(tmp_path, tokenizer, template).row(0)
    try:
        scores, texts = worker.score(row, CompletionGroup(0, 0, 0, 0, np.zeros(1, np.int32), (completion,)))
    finally:
        worker.close()
    assert texts == [start + ANSWER]
    assert scores[0].by_name == {"format": value}
