"""Tokenised data sets: prompts for rollouts, and conversations with loss weights for SFT."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rlflow.data.arrow_file import map_arrow, shared_name, write_arrow
from rlflow.data.chat import prompt_messages, render
from rlflow.data.loss_weights import base_weight, weigh_text, weigh_tokens
from rlflow.data.messages import Message
from rlflow.data.rows import Rows
from rlflow.data.turns import TurnFrame, probe_frame
from rlflow.errors import DataError
from rlflow.spec.data import DataSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH_ROWS = 1000
_PROMPT_SCHEMA = pa.schema({"row": pa.int64(), "prompt_ids": pa.list_(pa.int32()), "text": pa.string()})
CONVERSATION_SCHEMA = pa.schema(
    {
        "origin": pa.string(),
        "input_ids": pa.list_(pa.int32()),
        "loss_weights": pa.list_(pa.float32()),
        "label": pa.float32(),
        "cut": pa.int8(),
    }
)
WHOLE, CUT, LATER_PIECE = range(3)
"""What a tokenised conversation is of its row: all, a part or the first piece, or a later piece of a text that was split."""
CONVERSATION_SETTINGS = {
    *("chat_template_kwargs", "system", "max_tokens", "overlong", "loss", "ignore_empty_think", "loss_weights"),
}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, ready for a rollout; `columns` are what its row holds besides messages, for rewards."""

    prompt_id: int
    prompt_ids: list[int]
    text: str
    messages: list[Message]
    columns: dict[str, Any]
    origin: str


class PromptSet(Sequence[Prompt]):
    """Prompts of rows, tokenised in a file. `prompt_id` is the index in this set."""

    def __init__(self, path: Path, rows: Rows, spec: DataSpec) -> None:
        self.path = path
        self.rows = rows
        self._spec = spec
        self._table, source_rows = map_arrow(path)
        self.num_dropped = source_rows - len(self)

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, index: int) -> Prompt:  # pyright: ignore[reportIncompatibleMethodOverride]
        row = self.rows[self._table["row"][index].as_py()]
        return Prompt(
            prompt_id=range(len(self))[index],
            prompt_ids=self._table["prompt_ids"][index].as_py(),
            text=self._table["text"][index].as_py(),
            messages=prompt_messages(row.messages, self._spec),
            columns=row.columns,
            origin=row.origin,
        )

    @property
    def lengths(self) -> list[int]:
        """Tokens of every prompt."""
        return pc.call_function("list_value_length", [self._table["prompt_ids"]]).to_pylist()


class ConversationSet:
    """Training conversations in a file; its path is enough to open it, so ranks are sent row indices."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._table, source_rows = map_arrow(self.path)
        cut = self._table["cut"].to_numpy()
        self.num_dropped = source_rows - int((cut != LATER_PIECE).sum())
        self.num_cut = int((cut == CUT).sum())

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids, int32 [T], and loss weights, float32 [T], without copying; read-only.

        A weight belongs to the token as a target.
        """
        ids, weights = self._table["input_ids"][index], self._table["loss_weights"][index]
        return ids.values.to_numpy(), weights.values.to_numpy()

    def label(self, index: int) -> float:
        """What the data say of a conversation: the margin of its pair, 1 or 0 for desirable or not; else 0."""
        return self._table["label"][index].as_py()

    def origin(self, index: int) -> str:
        """Where a conversation came from: `file.jsonl, row 17`."""
        return self._table["origin"][index].as_py()

    @property
    def lengths(self) -> list[int]:
        """Tokens of every conversation."""
        return pc.call_function("list_value_length", [self._table["input_ids"]]).to_pylist()

    @property
    def loss_weight_sums(self) -> list[float]:
        """Sum of the loss weights of every conversation."""
        return [float(weights.values.to_numpy().sum()) for weights in self._table["loss_weights"]]


def tokenize_prompts(rows: Rows, tokenizer: "PreTrainedTokenizerBase", spec: DataSpec, cache_dir: str | Path) -> PromptSet:
    """The prompts of all rows, in a file under `cache_dir`, reused for the same rows, tokenizer and settings.

    Raises:
        DataError: a row is malformed, or longer than `data.max_prompt_tokens` (unless dropped).
    """
    settings = spec.model_dump(include={"chat_template_kwargs", "system", "max_prompt_tokens", "overlong"})
    path = Path(cache_dir) / shared_name("prompts", rows.fingerprint(), tokenizer, settings)
    if not path.exists():
        write_arrow(path, _PROMPT_SCHEMA, _tokenize_prompts(rows, tokenizer, spec), len(rows), is_shared=True)
    prompts = PromptSet(path, rows, spec)
    report_dropped(len(prompts), prompts.num_dropped, "max_prompt_tokens", spec.max_prompt_tokens)
    return prompts


def tokenize_conversations(
    rows: Rows, tokenizer: "PreTrainedTokenizerBase", spec: DataSpec, cache_dir: str | Path
) -> ConversationSet:
    """The training conversations of all rows, in a file under `cache_dir`, reused like that of prompts.

    Raises:
        DataError: a row is malformed, trains nothing, or is longer than `data.max_tokens` (unless dropped or cut).
    """
    settings = spec.model_dump(include=CONVERSATION_SETTINGS)
    path = Path(cache_dir) / shared_name("conversations", rows.fingerprint(), tokenizer, settings)
    conversations = write_conversations(path, rows, tokenizer, spec)
    if len(rows) and not len(conversations):
        raise _nothing_left("max_tokens", spec.max_tokens)
    return conversations


def write_conversations(path: Path, rows: Rows, tokenizer: "PreTrainedTokenizerBase", spec: DataSpec) -> ConversationSet:
    """The training conversations of rows in a file of this name, which is opened if it is there. Raises `DataError`, as above."""
    if not path.exists():
        write_arrow(path, CONVERSATION_SCHEMA, _tokenize_conversations(rows, tokenizer, spec), len(rows), is_shared=True)
    conversations = ConversationSet(path)
    _warn_of_dropped(conversations.num_dropped, len(rows), "max_tokens", spec.max_tokens)
    if conversations.num_cut:
        done = "split" if spec.overlong == "split" else "truncated"
        _log.warning("%s %d of %d rows longer than data.max_tokens (%d)", done, conversations.num_cut, len(rows), spec.max_tokens)
    return conversations


def _tokenize_prompts(rows: Rows, tokenizer: "PreTrainedTokenizerBase", spec: DataSpec) -> Iterator[pa.RecordBatch]:
    for indices, batch in read_batches(rows):
        texts: list[str] = []
        for index, messages in zip(indices, batch, strict=True):
            try:
                texts.append(render(tokenizer, prompt_messages(messages, spec), spec, for_generation=True))
            except DataError as error:
                raise DataError(f"{rows.origin(index)}: {error}") from None
        ids = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        kept = _fit(rows, indices, ids, "max_prompt_tokens", spec.max_prompt_tokens, spec.overlong)
        yield pa.record_batch(
            [
                pa.array([indices[number] for number in kept], pa.int64()),
                pa.array([ids[number] for number in kept], pa.list_(pa.int32())),
                pa.array([texts[number] for number in kept], pa.string()),
            ],
            schema=_PROMPT_SCHEMA,
        )


def _tokenize_conversations(rows: Rows, tokenizer: "PreTrainedTokenizerBase", spec: DataSpec) -> Iterator[pa.RecordBatch]:
    frame = probe_frame(tokenizer, spec)
    for indices, batch in read_batches(rows):
        named = [(rows.origin(index), messages) for index, messages in zip(indices, batch, strict=True)]
        examples = encode_conversations(tokenizer, named, spec, frame)
        is_text = [messages[0]["role"] == "text" for messages in batch]
        yield conversation_batch(
            [p for e, text in zip(examples, is_text, strict=True) for p in fit_example(e, spec, is_text=text)]
        )


@dataclass(frozen=True, slots=True)
class EncodedConversation:
    """A tokenised conversation: token ids [T] and loss weights, float32 [T]."""

    origin: str
    input_ids: list[int]
    loss_weights: np.ndarray
    cut: int = WHOLE


def fit_example(example: EncodedConversation, spec: DataSpec, *, is_text: bool) -> list[EncodedConversation]:
    """What `data.overlong` makes of a conversation: itself, a part of it, pieces, or nothing.

    A part in which nothing would be trained is dropped.

    Raises:
        DataError: it is longer than `data.max_tokens`, and is neither to be dropped nor to be cut.
    """
    length, limit = len(example.input_ids), spec.max_tokens
    if length <= limit:
        return [example]
    if spec.overlong == "error" or (spec.overlong == "split" and not is_text):
        hint = "set data.overlong: drop" if spec.overlong == "error" else "data.overlong: split is for plain text only"
        raise DataError(f"{example.origin}: {length} tokens, more than data.max_tokens ({limit}); raise it, or {hint}")
    starts = {"drop": [], "truncate_left": [length - limit], "truncate_right": [0], "split": range(0, length, limit)}
    pieces = [_cut(example, start, limit, LATER_PIECE if number else CUT) for number, start in enumerate(starts[spec.overlong])]
    return [piece for piece in pieces if piece.loss_weights.any()]


def _cut(example: EncodedConversation, start: int, count: int, cut: int) -> EncodedConversation:
    part = slice(start, start + count)
    return EncodedConversation(example.origin, example.input_ids[part], example.loss_weights[part], cut)


def encode_conversations(
    tokenizer: "PreTrainedTokenizerBase", named: Sequence[tuple[str, Sequence[Message]]], spec: DataSpec, frame: TurnFrame
) -> list[EncodedConversation]:
    """Tokenise conversations together; each comes with the name that errors give it.

    Raises:
        DataError: the template refuses one, or nothing in it would be trained.
    """
    weighed = []
    for origin, messages in named:
        try:
            weighed.append(weigh_text(tokenizer, messages, spec, frame))
        except DataError as error:
            raise DataError(f"{origin}: {error}") from None
    encoded = tokenizer(
        [text for text, _ in weighed],
        add_special_tokens=False,
        return_attention_mask=False,
        return_offsets_mapping=True,
        verbose=False,
    )
    base = base_weight(spec)
    return [
        EncodedConversation(origin, ids, weigh_tokens(offsets, spans, base))
        for (origin, _), ids, offsets, (_, spans) in zip(
            named, encoded["input_ids"], encoded["offset_mapping"], weighed, strict=True
        )
    ]


def conversation_batch(examples: Sequence[EncodedConversation], labels: Sequence[float] | None = None) -> pa.RecordBatch:
    """Conversations as rows of a file that `ConversationSet` opens."""
    return pa.record_batch(
        [
            pa.array([example.origin for example in examples], pa.string()),
            pa.array([example.input_ids for example in examples], pa.list_(pa.int32())),
            pa.array([example.loss_weights for example in examples], pa.list_(pa.float32())),
            pa.array(labels or [0.0] * len(examples), pa.float32()),
            pa.array([example.cut for example in examples], pa.int8()),
        ],
        schema=CONVERSATION_SCHEMA,
    )


def read_batches(rows: Rows) -> Iterator[tuple[range, list[Any]]]:
    """Indices of rows and what is read of them, many rows at a time."""
    for start in range(0, len(rows), _BATCH_ROWS):
        indices = range(start, min(start + _BATCH_ROWS, len(rows)))
        yield indices, rows.read(indices)


def _fit(rows: Rows, indices: Sequence[int], ids: Sequence[Sequence[int]], field: str, limit: int, overlong: str) -> list[int]:
    """Positions in the batch of the sequences within the limit."""
    kept = []
    for number, sequence in enumerate(ids):
        if len(sequence) <= limit:
            kept.append(number)
        elif overlong == "error":
            raise DataError(
                f"{rows.origin(indices[number])}: {len(sequence)} tokens, more than data.{field} ({limit}); "
                f"raise it, or set data.overlong: drop"
            )
    return kept


def report_dropped(kept: int, dropped: int, field: str, limit: int) -> None:
    """Say how many rows were dropped. Raises `DataError` if none is left."""
    if dropped and not kept:
        raise _nothing_left(field, limit)
    _warn_of_dropped(dropped, kept + dropped, field, limit)


def _nothing_left(field: str, limit: int) -> DataError:
    return DataError(f"data.{field}: every row is longer than {limit} tokens, nothing is left; raise it")


def _warn_of_dropped(dropped: int, of: int, field: str, limit: int) -> None:
    if dropped:
        _log.warning("dropped %d of %d rows longer than data.%s (%d)", dropped, of, field, limit)
