import numpy as np
import pytest
import torch

from rlflow.algorithms.batch_plan import MicroBatch
from rlflow.learner.sequences import TrainSequence, build_micro_batch

CPU = torch.device("cpu")
NAN = float("nan")
SEQUENCES = {
    7: TrainSequence(np.array([10, 11, 12, 13]), np.array([0, 0, 1, 0.5], np.float32), 2.0),
    3: TrainSequence(
        np.array([20, 21, 22]),
        np.array([1, 1, 1], np.float32),
        -1.0,
        np.array([NAN, -0.5, -0.25], np.float32),
    ),
}
WEIGHTS = {7: 0.1, 3: 0.2}


def _build(*sequences: int, packing: bool = True, is_padding: bool = False):
    return build_micro_batch(MicroBatch(sequences, is_padding), SEQUENCES, WEIGHTS, packing=packing, device=CPU)


def test_the_first_token_is_never_trained():
    assert SEQUENCES[3].trained.tolist() == [1, 2]
    assert SEQUENCES[7].trained.tolist() == [2, 3]


def test_packed_layout():
    batch = _build(7, 3)
    assert batch.input_ids_BT.tolist() == [[10, 11, 12, 13, 20, 21, 22]]
    assert batch.position_ids_BT.tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert batch.segments is not None and batch.segments.boundaries_S.tolist() == [0, 4, 7]
    assert batch.source_N.tolist() == [1, 2, 4, 5]
    assert batch.targets_N.tolist() == [12, 13, 21, 22]
    assert batch.weights_N.tolist() == pytest.approx([0.1, 0.05, 0.2, 0.2])
    assert batch.advantages_N.tolist() == [2.0, 2.0, -1.0, -1.0]
    assert batch.counts == (2, 2)


def test_padded_layout():
    batch = _build(3, 7, packing=False)
    assert batch.input_ids_BT.tolist() == [[20, 21, 22, 0], [10, 11, 12, 13]]
    assert batch.position_ids_BT.tolist() == [[0, 1, 2, 0], [0, 1, 2, 3]]
    assert batch.segments is None
    assert batch.source_N.tolist() == [0, 1, 5, 6]
    assert batch.targets_N.tolist() == [21, 22, 12, 13]


def test_sampler_logprobs_are_nan_where_unknown_and_none_where_all_are():
    known = _build(7, 3).sampler_logprobs_N
    assert known is not None
    np.testing.assert_array_equal(known.numpy(), np.array([NAN, NAN, -0.5, -0.25], np.float32))
    assert _build(7).sampler_logprobs_N is None


def test_padding_counts_nothing():
    batch = _build(3, is_padding=True)
    assert batch.weights_N.tolist() == [0.0, 0.0]
    assert batch.targets_N.tolist() == [21, 22]


def test_split_reverses_flatten():
    batch = _build(7, 3)
    values = {3: torch.tensor([3.0, 4.0]), 7: torch.tensor([1.0, 2.0])}
    flat = batch.flatten(values)
    assert flat.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert {key: part.tolist() for key, part in batch.split(flat).items()} == {7: [1.0, 2.0], 3: [3.0, 4.0]}
