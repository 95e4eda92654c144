"""Text of tokens as they come."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class StreamedText:
    """Decodes one completion piece by piece; a character that is spread over several tokens appears when it is whole."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self.text = ""
        """What has been decoded so far."""

    def add(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens complete."""
        pieces = [self._stream.step(self._tokenizer.backend_tokenizer, token) or "" for token in token_ids]  # pyright: ignore
        self._ids += token_ids
        piece = "".join(pieces)
        self.text += piece
        return piece

    def finish(self) -> str:
        """The rest: of a completion that was cut inside a character, the mark for what is missing."""
        whole = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        assert isinstance(whole, str)
        rest = whole[len(self.text) :] if whole.startswith(self.text) else ""
        self.text += rest
        return rest
