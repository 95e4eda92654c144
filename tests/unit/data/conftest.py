"""Tokenizers and files the data tests share."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rlflow.data.characters import build_character_tokenizer
from rlflow.data.chat import read_template

CORPUS = ["user assistant system think", "Paris is the capital of France", "Grüße aus München", "你好，世界"]


@pytest.fixture(scope="session")
def characters():
    """A character tokenizer that knows digits, signs and lower-case letters."""
    return build_character_tokenizer("0123456789+-= <>/abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


@pytest.fixture(scope="session")
def byte_level():
    """A small byte-level BPE tokenizer: characters outside ASCII are several tokens with the same offsets."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "<s>", "</s>"]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        chat_template=read_template("qwen3"),
    )


@pytest.fixture
def write_jsonl(tmp_path):
    """Write rows to a .jsonl file of the test's directory; returns its path as text."""

    def write(rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write
