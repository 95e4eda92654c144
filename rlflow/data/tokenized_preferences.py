"""Tokenised preferences: two sequences for each unit, next to each other in a file that `ConversationSet` opens.

Of a pair they are the chosen (2i) and the rejected conversation (2i + 1), each with the pair's margin as its label. Of a labelled
answer they are the conversation (2i) and its prompt with another row's answer (2i + 1), from which KTO estimates a divergence;
both have the label 1 (desirable) or 0.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlflow.data.arrow_file import shared_name, write_arrow
from rlflow.data.messages import Message
from rlflow.data.preferences import Labelled, answer_of, prompt_of
from rlflow.data.rows import Rows
from rlflow.data.tokenized import (
    CONVERSATION_SCHEMA,
    ConversationSet,
    EncodedConversation,
    conversation_batch,
    encode_conversations,
    read_batches,
    report_dropped,
)
from rlflow.data.turns import probe_frame
from rlflow.errors import DataError
from rlflow.spec.data import DataSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH_UNITS = 500


@dataclass(frozen=True, slots=True)
class _Unit:
    origin: str
    conversations: tuple[list[Message], list[Message]]
    label: float
    may_cut_second: bool = False
    """Whether the second conversation is cut at the limit instead of being too long."""


def tokenize_pairs(rows: Rows, tokenizer: "PreTrainedTokenizerBase", spec: DataSpec, cache_dir: str | Path) -> ConversationSet:
    """The pairs of all rows (of format `PreferenceFormat`), in a file under `cache_dir`, reused like that of conversations.

    Raises:
        DataError: a row is malformed, or longer than `data.max_tokens` (with `data.overlong: drop` the pair is dropped).
    """
    return _tokenize("pairs", _pair_units(rows), rows, tokenizer, spec, cache_dir)


def tokenize_labelled(rows: Rows, tokenizer: "PreTrainedTokenizerBase", spec: DataSpec, cache_dir: str | Path) -> ConversationSet:
    """The labelled answers of all rows (of format `LabelledFormat`), likewise.

    The other answer comes from the next row with another prompt, the first following the last: always the same, however rows
    are ordered or distributed later. It is cut where the two together would exceed `data.max_tokens`.

    Raises:
        DataError: a row is malformed or too long, or all rows have the same prompt.
    """
    return _tokenize("labelled", _labelled_units(rows), rows, tokenizer, spec, cache_dir)


def _tokenize(
    name: str, units: Iterator[_Unit], rows: Rows, tokenizer: "PreTrainedTokenizerBase", spec: DataSpec, cache_dir: str | Path
) -> ConversationSet:
    if spec.loss == "default":  # only the answer is compared, not the turns before it
        spec = spec.model_copy(update={"loss": "last_round"})
    settings = spec.model_dump(include={"chat_template_kwargs", "system", "max_tokens", "overlong", "loss", "ignore_empty_think"})
    path = Path(cache_dir) / shared_name(name, rows.fingerprint(), tokenizer, settings)
    if not path.exists():
        found = list(units)
        write_arrow(path, CONVERSATION_SCHEMA, _batches(found, tokenizer, spec), 2 * len(found), is_shared=True)
    examples = ConversationSet(path)
    report_dropped(len(examples) // 2, examples.num_dropped // 2, "max_tokens", spec.max_tokens)
    return examples


def _batches(units: Sequence[_Unit], tokenizer: "PreTrainedTokenizerBase", spec: DataSpec) -> Iterator[Any]:
    frame = probe_frame(tokenizer, spec)
    for start in range(0, len(units), _BATCH_UNITS):
        batch = units[start : start + _BATCH_UNITS]
        named = [(unit.origin, messages) for unit in batch for messages in unit.conversations]
        encoded = encode_conversations(tokenizer, named, spec, frame)
        kept = [
            (unit, pair)
            for unit, first, second in zip(batch, encoded[::2], encoded[1::2], strict=True)
            if _fits(pair := (first, _cut(second, spec.max_tokens) if unit.may_cut_second else second), spec)
        ]
        yield conversation_batch([e for _, pair in kept for e in pair], [unit.label for unit, pair in kept for _ in pair])


def _fits(pair: tuple[EncodedConversation, EncodedConversation], spec: DataSpec) -> bool:
    longest = max(len(example.input_ids) for example in pair)
    if longest > spec.max_tokens and spec.overlong == "error":
        raise DataError(
            f"{pair[0].origin}: {longest} tokens, more than data.max_tokens ({spec.max_tokens}); "
            "raise it, or set data.overlong: drop"
        )
    return longest <= spec.max_tokens


def _cut(example: EncodedConversation, limit: int) -> EncodedConversation:
    return EncodedConversation(example.origin, example.input_ids[:limit], example.loss_weights[:limit])


def _pair_units(rows: Rows) -> Iterator[_Unit]:
    for indices, pairs in read_batches(rows):
        for index, pair in zip(indices, pairs, strict=True):
            yield _Unit(rows.origin(index), (pair.chosen, pair.rejected), pair.margin)


def _labelled_units(rows: Rows) -> Iterator[_Unit]:
    answers: list[tuple[str, Labelled]] = []
    for indices, batch in read_batches(rows):
        for index, found in zip(indices, batch, strict=True):
            answers += [(rows.origin(index), labelled) for labelled in found]
    others = _next_with_another_prompt([labelled.messages for _, labelled in answers])
    for (origin, labelled), other in zip(answers, others, strict=True):
        mismatched = prompt_of(labelled.messages) + answer_of(answers[other][1].messages)
        yield _Unit(origin, (labelled.messages, mismatched), float(labelled.is_desirable), may_cut_second=True)


def _next_with_another_prompt(conversations: Sequence[list[Message]]) -> list[int]:
    """For each conversation the next one, in a circle, whose prompt is another."""
    if not conversations:
        return []
    prompts = [json.dumps(prompt_of(messages), sort_keys=True, default=str) for messages in conversations]
    if len(set(prompts)) == 1:
        raise DataError(
            "data: all rows have the same prompt, but KTO needs rows with different prompts (also among held-out rows)"
        )
    count = len(prompts)
    following = [0] * count
    for position in reversed(range(2 * count)):  # twice, so that the last ones know what follows the first
        index, after = position % count, (position + 1) % count
        following[index] = after if prompts[after] != prompts[index] else following[after]
    return following
