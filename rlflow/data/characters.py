"""Character-level tokenizers, for tiny models that train on a laptop."""

from typing import TYPE_CHECKING

from rlflow.data.chat import read_template
from rlflow.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, START, END, UNKNOWN = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>"
_TEMPLATE_CHARACTERS = "system" + "user" + "assistant" + "\n"


def build_character_tokenizer(characters: str) -> "PreTrainedTokenizerFast":
    """A tokenizer with one token per character, Qwen-style turn tokens and the packaged `qwen3` template.

    Its vocabulary: `<|endoftext|>` (0, padding), `<|im_start|>`, `<|im_end|>` (end of sequence), `<unk>`
    (whatever is not in `characters`), then the characters and those of role names, sorted. For these
    `decode(encode(x)) == x`.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if not characters:
        raise DataError("a character tokenizer needs at least one character")
    special = [PAD, START, END, UNKNOWN]
    vocabulary = special + sorted(set(characters + _TEMPLATE_CHARACTERS))
    tokenizer = Tokenizer(models.WordLevel({token: number for number, token in enumerate(vocabulary)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        additional_special_tokens=[START],
        chat_template=read_template("qwen3"),
        clean_up_tokenization_spaces=False,
    )
