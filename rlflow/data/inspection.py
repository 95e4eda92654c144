"""What a job's rows become, without stopping at the first bad one: for a look at the data before training."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rlflow.data.chat import render_prompt
from rlflow.data.loss_weights import base_weight, weigh_text, weigh_tokens
from rlflow.data.messages import Message
from rlflow.data.preferences import Labelled, Preference
from rlflow.data.questions import ask, check_length
from rlflow.data.rows import Rows
from rlflow.data.tokenized import CUT, EncodedConversation, fit_example
from rlflow.data.turns import TurnFrame, probe_frame
from rlflow.errors import DataError
from rlflow.spec.data import DataSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH_ROWS = 1000
Piece = tuple[str, float]
"""Text, and the weight of its tokens in the loss."""


@dataclass(frozen=True, slots=True)
class RowSequence:
    """A token sequence of a row: what it is in its row (the chosen answer, say), its rendered text, and its tokens."""

    name: str
    pieces: list[Piece]
    example: EncodedConversation


@dataclass(slots=True)
class SourceCounts:
    """What a source gives."""

    rows: int = 0
    tokens: int = 0
    trained_tokens: int = 0


@dataclass(slots=True)
class Inspection:
    """What was found in rows."""

    lengths: list[int] = field(default_factory=list)
    """Tokens of every sequence that is kept; two for a pair of answers."""
    sources: dict[int, SourceCounts] = field(default_factory=dict)
    """By the number of the source; only rows that are kept."""
    bad: dict[str, str] = field(default_factory=dict)
    """Why a row cannot be used, by its file and number; such rows stop the job."""
    num_dropped: int = 0
    num_cut: int = 0
    first: dict[int, list[list[RowSequence]]] = field(default_factory=dict)
    """The first rows of each source."""


Encode = Callable[[Any, str], list[RowSequence]]
"""What is read of a row, and its name, to its sequences. Raises `DataError`."""


def inspect_rows(
    rows: Rows, encode: Encode, fit: Callable[[list[RowSequence]], list[EncodedConversation]], show: int
) -> Inspection:
    """Read, render and tokenise all rows; keeps the first `show` of each source as they are rendered."""
    found = Inspection()
    for index, value in _read_each(rows, found.bad):
        origin = rows.origin(index)
        try:
            sequences = encode(value, origin)
            kept = fit(sequences)
        except DataError as error:
            found.bad[origin] = str(error).removeprefix(f"{origin}: ")
            continue
        _count(found, rows.source(index), sequences, kept, show)
    return found


def conversation_encoder(tokenizer: "PreTrainedTokenizerBase", spec: DataSpec) -> Encode:
    """For training conversations, alone, in pairs or with a label."""
    frame = probe_frame(tokenizer, spec)

    def encode(value: Any, origin: str) -> list[RowSequence]:
        return [_encode(tokenizer, messages, spec, frame, name, origin) for name, messages in _conversations(value)]

    return encode


def prompt_encoder(tokenizer: "PreTrainedTokenizerBase", spec: DataSpec) -> Encode:
    """For prompts of rollouts; nothing of them is trained."""

    def encode(value: list[Message], origin: str) -> list[RowSequence]:
        return _prompt(origin, *render_prompt(tokenizer, value, spec))

    return encode


def question_encoder(tokenizer: "PreTrainedTokenizerBase", spec: DataSpec, response_prefix: str) -> Encode:
    """For rows that batch inference answers."""

    def encode(value: list[Message], origin: str) -> list[RowSequence]:
        question = ask(tokenizer, value, spec, response_prefix)
        return _prompt(origin, question.text, question.prompt_ids)

    return encode


def _prompt(origin: str, text: str, ids: list[int]) -> list[RowSequence]:
    return [RowSequence("prompt", [(text, 0.0)], EncodedConversation(origin, ids, np.zeros(len(ids), np.float32)))]


def fit_question(spec: DataSpec) -> Callable[[list[RowSequence]], list[EncodedConversation]]:
    """Rows of batch inference, which refuses prompts beyond the limit."""

    def fit(sequences: list[RowSequence]) -> list[EncodedConversation]:
        check_length(len(sequences[0].example.input_ids), spec)
        return [sequences[0].example]

    return fit


def fit_or_drop(limit: int, field_name: str, spec: DataSpec) -> Callable[[list[RowSequence]], list[EncodedConversation]]:
    """Rows that `data.overlong` keeps whole or not at all."""

    def fit(sequences: list[RowSequence]) -> list[EncodedConversation]:
        longest = max(len(sequence.example.input_ids) for sequence in sequences)
        if longest > limit and spec.overlong == "error":
            raise DataError(f"{longest} tokens, more than data.{field_name} ({limit}); raise it, or set data.overlong: drop")
        return [sequence.example for sequence in sequences] if longest <= limit else []

    return fit


def fit_conversation(spec: DataSpec) -> Callable[[list[RowSequence]], list[EncodedConversation]]:
    """Rows of SFT, which may also be cut."""

    def fit(sequences: list[RowSequence]) -> list[EncodedConversation]:
        return [piece for s in sequences for piece in fit_example(s.example, spec, is_text=s.name == "text")]

    return fit


def _read_each(rows: Rows, bad: dict[str, str]) -> Iterator[tuple[int, Any]]:
    """Indices and what is read of them, many at a time where all are good."""
    for start in range(0, len(rows), _BATCH_ROWS):
        indices = range(start, min(start + _BATCH_ROWS, len(rows)))
        try:
            yield from zip(indices, rows.read(indices), strict=True)
        except DataError:
            for index in indices:
                try:
                    yield index, rows.read([index])[0]
                except DataError as error:
                    bad[rows.origin(index)] = str(error).removeprefix(f"{rows.origin(index)}: ")


def _conversations(value: Any) -> list[tuple[str, list[Message]]]:
    if isinstance(value, Preference):
        return [("chosen", value.chosen), ("rejected", value.rejected)]
    if isinstance(value[0], Labelled):
        return [("desirable" if each.is_desirable else "undesirable", each.messages) for each in value]
    return [("text" if value[0]["role"] == "text" else "conversation", value)]


def _encode(
    tokenizer: "PreTrainedTokenizerBase", messages: list[Message], spec: DataSpec, frame: TurnFrame, name: str, origin: str
) -> RowSequence:
    text, spans = weigh_text(tokenizer, messages, spec, frame)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    offsets = encoded["offset_mapping"]
    weights = weigh_tokens(offsets, spans, base_weight(spec))
    return RowSequence(name, _pieces(text, offsets, weights), EncodedConversation(origin, encoded["input_ids"], weights))


def _pieces(text: str, offsets: Sequence[tuple[int, int]], weights: np.ndarray) -> list[Piece]:
    """The text cut where the weight of its tokens changes."""
    pieces: list[Piece] = []
    end = 0
    for (_, token_end), weight in zip(offsets, weights.tolist(), strict=True):
        part, end = text[end : max(end, token_end)], max(end, token_end)
        if pieces and pieces[-1][1] == weight:
            pieces[-1] = (pieces[-1][0] + part, weight)
        else:
            pieces.append((part, weight))
    return [*pieces, (text[end:], 0.0)] if end < len(text) else pieces


def _count(found: Inspection, source: int, sequences: list[RowSequence], kept: list[EncodedConversation], show: int) -> None:
    first = found.first.setdefault(source, [])
    if len(first) < show:
        first.append(sequences)
    if not kept:
        found.num_dropped += 1
        return
    counts = found.sources.setdefault(source, SourceCounts())
    counts.rows += 1
    counts.tokens += sum(len(example.input_ids) for example in kept)
    counts.trained_tokens += sum(int(np.count_nonzero(example.loss_weights)) for example in kept)
    found.num_cut += kept[0].cut == CUT
    found.lengths += [len(example.input_ids) for example in kept]
