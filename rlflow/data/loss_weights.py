"""Training conversations: token ids, and how much each token counts in the loss."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rlflow.data.chat import add_system
from rlflow.data.loss_patterns import WeightedPattern, weighted_patterns
from rlflow.data.messages import Message
from rlflow.data.turns import Turn, TurnFrame, locate_turns, probe_frame
from rlflow.errors import DataError
from rlflow.spec.data import DataSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Span:
    """Characters [start, end) of a rendered conversation, and their weight in the loss."""

    start: int
    end: int
    weight: float


def encode_conversation(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], spec: DataSpec
) -> tuple[list[int], list[float]]:
    """Token ids [T] and loss weights [T] of a conversation; a weight belongs to the token as a target.

    Rendered once and tokenised once; spans of the text are mapped to tokens by overlap of offsets.

    Raises:
        DataError: nothing would be trained, or the template hides where turns are.
    """
    text, spans = weigh_text(tokenizer, messages, spec, probe_frame(tokenizer, spec))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    weights = weigh_tokens(encoded["offset_mapping"], spans, base_weight(spec))
    return encoded["input_ids"], weights.tolist()


def base_weight(spec: DataSpec) -> float:
    """The weight of tokens outside assistant turns."""
    return 1.0 if spec.loss == "all" else 0.0


def weigh_text(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], spec: DataSpec, frame: TurnFrame
) -> tuple[str, list[Span]]:
    """The rendered conversation and the weighted spans of its assistant turns.

    A message's own `loss` (true or false) overrides `data.loss`; its `loss_scale` multiplies the weight.
    A plain text stands between the tokenizer's start and end tokens, and is trained whole.
    """
    if messages[0]["role"] == "text":
        text = _render_text(tokenizer, messages[0]["content"])
        return text, [Span(0, len(text), 1.0)]
    messages = add_system(messages, spec)
    text, turns = locate_turns(tokenizer, messages, spec, frame)
    last_user = max(number for number, message in enumerate(messages) if message["role"] == "user")
    patterns = weighted_patterns(spec)
    spans: list[Span] = []
    for turn in turns:
        trained = spec.loss != "last_round" or turn.message > last_user
        weight = _weigh_message(messages[turn.message], trained)
        spans += _weigh_turn(text, turn, weight, patterns, frame.closer)
    if spec.loss != "all" and not any(span.weight for span in spans):
        raise DataError(
            "nothing to train on: it has no assistant turn that counts "
            "(if another column holds the answer, rename it to response with `columns` of the source)"
        )
    return text, spans


def weigh_tokens(offsets: Iterable[tuple[int, int]], spans: Sequence[Span], base: float) -> np.ndarray:
    """Loss weights, float32 [T]: that of the span a token overlaps, the largest if several; else `base`."""
    bounds: np.ndarray[Any, Any] = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    weights = np.full(len(bounds), base, dtype=np.float32)
    for span in sorted(spans, key=lambda span: span.weight):
        weights[(bounds[:, 0] < span.end) & (bounds[:, 1] > span.start)] = span.weight
    return weights


def _render_text(tokenizer: "PreTrainedTokenizerBase", text: str) -> str:
    ids = tokenizer("a")["input_ids"]
    starts = tokenizer.bos_token is not None and ids[0] == tokenizer.bos_token_id
    return (str(tokenizer.bos_token) if starts else "") + text + str(tokenizer.eos_token or "")


def _weigh_message(message: Message, trained: bool) -> float:
    if not message.get("loss", trained):
        return 0.0
    return float(message.get("loss_scale", 1.0))


def _weigh_turn(text: str, turn: Turn, weight: float, patterns: Sequence[WeightedPattern], closer: str) -> list[Span]:
    """The turn in spans of equal weight: the turn's, times that of every pattern that is found there."""
    content = text[turn.start : turn.end].removesuffix(closer)
    found = [Span(turn.start + m.start(), turn.start + m.end(), w) for p, w in patterns for m in p.finditer(content)]
    edges = sorted({turn.start, turn.end, *(edge for span in found for edge in (span.start, span.end))})
    return [
        Span(start, end, weight * math.prod(span.weight for span in found if span.start <= start and end <= span.end))
        for start, end in itertools.pairwise(edges)
    ]
