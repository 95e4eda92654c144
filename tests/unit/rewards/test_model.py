"""A reward model as a reward: the scores of transformers, batched, and what is refused."""

import pytest
import torch

from rlflow.data.characters import build_character_tokenizer
from rlflow.errors import RewardError
from rlflow.rewards import RewardScorer
from rlflow.rewards.model import ModelReward
from rlflow.spec.rewards import FormatSpec, ModelRewardSpec


def save(folder, *, num_labels=1, causal=False):
    """A tiny classifier, or language model, with a character tokenizer."""
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3ForSequenceClassification

    tokenizer = build_character_tokenizer("0123456789+=")
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        num_labels=num_labels,
        initializer_range=0.5,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model = (Qwen3ForCausalLM if causal else Qwen3ForSequenceClassification)(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval(), tokenizer


def test_scores_are_those_of_the_model_whatever_the_batch(tmp_path, make_sample):
    model, tokenizer = save(tmp_path / "reward")
    samples = [make_sample(answer) for answer in ("2", "1+1=2", "", "9" * 30, "7")]
    expected = []
    for sample in samples:
        messages = [*sample.messages, {"role": "assistant", "content": sample.completion}]
        ids = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False), return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            expected.append(float(model(**ids).logits))
    assert len({round(score, 3) for score in expected}) == 5
    specs = [
        ModelRewardSpec(path="reward", batch_size=2, weight=2.0),
        ModelRewardSpec(path="reward", name="whole", batch_size=16, weight=0.0),
        FormatSpec(pattern=".*2"),
    ]
    with RewardScorer(specs, max_completion_tokens=100, cwd=str(tmp_path)) as scorer:
        scores = scorer.score(samples)
    for name in ("model", "whole"):
        assert [score.by_name[name] for score in scores] == pytest.approx(expected, abs=1e-5)
    assert scores[0].total == pytest.approx(2 * expected[0] + 1, abs=1e-5)


def test_a_conversation_beyond_the_limit_fails(tmp_path, make_sample):
    save(tmp_path / "reward")
    reward = ModelReward(ModelRewardSpec(path=str(tmp_path / "reward"), max_tokens=40))
    with pytest.raises(RewardError, match=r"longer than max_tokens \(40\)"):
        reward([make_sample("1" * 50)])


@pytest.mark.parametrize(
    ("options", "reason"), [({"num_labels": 2}, "2 labels"), ({"causal": True, "num_labels": 1}, "no weights score.weight")]
)
def test_models_without_a_score_are_refused(tmp_path, options, reason):
    save(tmp_path / "reward", **options)
    with pytest.raises(RewardError, match=rf"reward is no reward model: it has {reason}"):
        ModelReward(ModelRewardSpec(path=str(tmp_path / "reward")))
