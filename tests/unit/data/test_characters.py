import pytest
from transformers import AutoTokenizer

from rlflow.data.characters import build_character_tokenizer
from rlflow.data.chat import render_prompt
from rlflow.errors import DataError
from rlflow.spec.data import DataSpec

SPEC = DataSpec(sources=("unused.jsonl",))


def test_the_vocabulary_is_small_and_fixed():
    tokenizer = build_character_tokenizer("0123456789+-=")
    assert len(tokenizer) == 4 + 13 + len(set("systemuserassistant\n"))
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3]) == [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<unk>",
    ]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 2)
    assert build_character_tokenizer("=-+9876543210").get_vocab() == tokenizer.get_vocab()


def test_the_prompt_is_the_documented_text(characters):
    text, ids = render_prompt(characters, [{"role": "user", "content": "12+34"}], SPEC)
    assert text == "<|im_start|>user\n12+34<|im_end|>\n<|im_start|>assistant\n"
    assert len(ids) == len("user\n12+34\nassistant\n") + 3
    assert characters.decode(ids) == text


def test_decoding_gives_back_the_text(characters):
    text = " a  b\n\n <1 + 2> = 3 . "
    assert characters.decode(characters.encode(text.replace(".", ""))) == text.replace(".", "")


def test_unknown_characters_do_not_vanish(characters):
    encoded = characters("1é2", return_offsets_mapping=True)
    assert encoded["input_ids"][1] == characters.unk_token_id
    assert encoded["offset_mapping"] == [(0, 1), (1, 2), (2, 3)]


def test_it_loads_from_disk_with_its_template(characters, tmp_path):
    characters.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.chat_template == characters.chat_template
    assert loaded.get_vocab() == characters.get_vocab()
    assert (loaded.pad_token_id, loaded.eos_token_id) == (0, 2)
    assert loaded.decode(loaded.encode("1 + 2 = 3")) == "1 + 2 = 3"


def test_no_characters_are_refused():
    with pytest.raises(DataError, match="at least one character"):
        build_character_tokenizer("")
