import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from rlflow.errors import LearnerError
from rlflow.learner.attention import Segments, segment_attention

LENGTHS = (3, 1, 4, 3)
MODULE = torch.nn.Module()


def _packed(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query of 4 heads, key and value of 2."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1, heads, sum(LENGTHS), 8) for heads in (4, 2, 2)]
    query, key, value = (torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes)
    return query, key, value


def _each_alone(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    parts = zip(*(x.split(LENGTHS, dim=2) for x in (query, key, value)), strict=True)
    outputs = [scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=True) for q, k, v in parts]
    return torch.cat(outputs, dim=2).transpose(1, 2)


def test_segments_describe_the_row():
    segments = Segments.from_lengths(LENGTHS, torch.device("cpu"))
    assert segments.boundaries_S.tolist() == [0, 3, 4, 8, 11]
    assert segments.boundaries_S.dtype == torch.int32
    assert segments.longest == 4
    positions = {length: positions.tolist() for length, positions in segments.by_length}
    assert positions == {3: [[0, 1, 2], [8, 9, 10]], 1: [[3]], 4: [[4, 5, 6, 7]]}


def test_each_sequence_attends_to_itself_only():
    tensors = _packed()
    segments = Segments.from_lengths(LENGTHS, torch.device("cpu"))
    output, weights = segment_attention(MODULE, *tensors, None, scaling=0.3, rlflow_segments=segments)
    expected = _each_alone(*tensors)
    assert weights is None
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-6)
    gradients = torch.autograd.grad(output.square().sum(), tensors)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected.square().sum(), tensors), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-5)


def test_without_segments_rows_are_causal():
    query, key, value = (x.detach() for x in _packed())
    output, _ = segment_attention(MODULE, query, key, value, None, scaling=0.3)
    key[:, :, -1], value[:, :, -1] = 9.0, 9.0
    changed, _ = segment_attention(MODULE, query, key, value, None, scaling=0.3)
    torch.testing.assert_close(output[:, :-1], changed[:, :-1])
    assert not torch.allclose(output[:, -1], changed[:, -1])


def test_sliding_windows_shorter_than_a_sequence_are_refused():
    segments = Segments.from_lengths(LENGTHS, torch.device("cpu"))
    segment_attention(MODULE, *_packed(), None, rlflow_segments=segments, sliding_window=4)
    with pytest.raises(LearnerError, match=r"sliding-window attention \(3 tokens\) .* sequences of 4 tokens"):
        segment_attention(MODULE, *_packed(), None, rlflow_segments=segments, sliding_window=3)
