"""What the learner trains on: sequences, and micro-batches of them as tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlflow.algorithms.batch_plan import MicroBatch
from rlflow.algorithms.distillation import HeadScore
from rlflow.algorithms.fused_logprobs import Slopes
from rlflow.learner.attention import Segments
from rlflow.learner.transfer import to_device


@dataclass(frozen=True, slots=True)
class TrainSequence:
    """One sequence of L tokens."""

    token_ids: np.ndarray
    """int [L]."""
    loss_weights: np.ndarray
    """float32 [L]: weight of predicting each token; 0 where it is not trained. The first token never is."""
    advantage: float | np.ndarray = 0.0
    """Of the whole sequence, or float32 [L]."""
    sampler_logprobs: np.ndarray | None = None
    """float32 [L], NaN on tokens that were not sampled; None if the sampler did not report them."""
    label: float = 0.0
    """What the data say of it: the margin of its pair, or 1 and 0 for desirable and not."""

    @property
    def trained(self) -> np.ndarray:
        """Positions of the trained tokens, int [n]."""
        return np.flatnonzero(self.loss_weights[1:]) + 1


@dataclass(frozen=True, slots=True)
class MicroBatchTensors:
    """A micro-batch on the device: B rows of T tokens, N trained tokens in the order of `sequences`."""

    sequences: tuple[int, ...]
    input_ids_BT: Tensor
    position_ids_BT: Tensor
    segments: Segments | None
    """Where the sequences lie in a packed row; None: one sequence a row, padded on the right."""
    sequence_of_T: Tensor
    """int64 [B x T]: which sequence each flat position belongs to; -1 for padding."""
    source_N: Tensor
    """Flat position (in B x T) whose output predicts each trained token."""
    targets_N: Tensor
    weights_N: Tensor
    sequence_weights_S: Tensor
    """Weight of each sequence in an objective that has one loss a sequence."""
    labels_S: Tensor
    last_S: Tensor
    """Flat position of each sequence's last token."""
    advantages_N: Tensor
    sampler_logprobs_N: Tensor | None
    counts: tuple[int, ...]
    """Trained tokens of each sequence."""
    head_score: HeadScore | None = None
    """What the output head computes instead of the targets' scores (distillation)."""
    slopes: Slopes | None = None
    """Of an objective whose derivatives by the scores are known beforehand."""

    def flatten(self, per_sequence: Mapping[int, Tensor]) -> Tensor:
        """Per-sequence values [n, ...] in the order of this micro-batch, [N, ...] on its device."""
        return to_device(torch.cat([per_sequence[i] for i in self.sequences]), self.weights_N.device)

    def split(self, values_N: Tensor) -> dict[int, Tensor]:
        """The reverse of `flatten`: sequence -> values [n, ...] on the CPU."""
        return dict(zip(self.sequences, values_N.detach().cpu().split(self.counts), strict=True))


def build_micro_batch(
    micro_batch: MicroBatch,
    sequences: Mapping[int, TrainSequence],
    token_weights: Mapping[int, float],
    *,
    packing: bool,
    device: torch.device,
    multiple: int = 1,
) -> MicroBatchTensors:
    """Lay the micro-batch's sequences out: in one row (`packing`), or one a row, padded. Rows are padded to a multiple."""
    members = [sequences[i] for i in micro_batch.sequences]
    lengths = [len(s.token_ids) for s in members]
    row_length = sum(lengths) if packing else max(lengths)
    rest = -row_length % multiple
    row_length += rest
    starts = np.cumsum([0, *lengths[:-1]]) if packing else np.arange(len(members)) * row_length
    size = row_length if packing else row_length * len(members)
    input_ids, positions, sequence_of = np.zeros(size, np.int64), np.zeros(size, np.int64), np.full(size, -1)
    for number, (start, length, sequence) in enumerate(zip(starts, lengths, members, strict=True)):
        input_ids[start : start + length] = sequence.token_ids
        positions[start : start + length] = np.arange(length)
        sequence_of[start : start + length] = number
    trained = [s.trained for s in members]
    scale = [0.0 if micro_batch.is_padding else token_weights[i] for i in micro_batch.sequences]
    known = [s.sampler_logprobs is not None for s in members]
    return MicroBatchTensors(
        sequences=micro_batch.sequences,
        input_ids_BT=to_device(torch.from_numpy(input_ids).view(-1, row_length), device),
        position_ids_BT=to_device(torch.from_numpy(positions).view(-1, row_length), device),
        segments=Segments.from_lengths([*lengths, rest] if rest else lengths, device) if packing else None,
        sequence_of_T=to_device(torch.from_numpy(sequence_of), device),
        source_N=_tensor([start + t - 1 for start, t in zip(starts, trained, strict=True)], torch.int64, device),
        targets_N=_tensor([s.token_ids[t] for s, t in zip(members, trained, strict=True)], torch.int64, device),
        weights_N=_tensor(
            [s.loss_weights[t] * w for s, t, w in zip(members, trained, scale, strict=True)],
            torch.float32,
            device,
        ),
        sequence_weights_S=to_device(torch.tensor(scale, dtype=torch.float32), device),
        labels_S=to_device(torch.tensor([s.label for s in members], dtype=torch.float32), device),
        last_S=to_device(torch.from_numpy(starts + np.array(lengths) - 1), device),
        advantages_N=_tensor(
            [np.broadcast_to(s.advantage, len(s.token_ids))[t] for s, t in zip(members, trained, strict=True)],
            torch.float32,
            device,
        ),
        sampler_logprobs_N=_tensor(
            [_sampler_logprobs(s, t) for s, t in zip(members, trained, strict=True)], torch.float32, device
        )
        if any(known)
        else None,
        counts=tuple(len(t) for t in trained),
    )


def _sampler_logprobs(sequence: TrainSequence, trained: np.ndarray) -> np.ndarray:
    if sequence.sampler_logprobs is None:
        return np.full(len(trained), np.nan)
    return sequence.sampler_logprobs[trained]


def _tensor(parts: Sequence[np.ndarray], dtype: torch.dtype, device: torch.device) -> Tensor:
    return to_device(torch.from_numpy(np.concatenate(parts)).to(dtype), device)
