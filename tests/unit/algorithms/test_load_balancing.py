import pytest
import torch

from rlflow.algorithms.load_balancing import load_balancing_loss


def test_load_balancing_is_that_of_transformers_for_each_layer_and_sequence():
    from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

    logits_LTE = torch.randn(3, 12, 5, generator=torch.Generator().manual_seed(0))
    sequence_of_T = torch.tensor([0, 0, 0, -1, 1, 1, 1, 1, 1, 2, 2, -1])
    ours_S = load_balancing_loss(logits_LTE, sequence_of_T, 3, top_k=2)
    for sequence, value in enumerate(ours_S.tolist()):
        layers = [load_balancing_loss_func((layer[sequence_of_T == sequence],), 5, 2) for layer in logits_LTE]
        assert value == pytest.approx(float(sum(layers)) / 3, rel=1e-5)


def test_perfect_balance_gives_top_k():
    logits_LTE = torch.eye(4)[None] * 20.0  # each of four tokens goes to an expert of its own, almost surely
    assert load_balancing_loss(logits_LTE, torch.zeros(4, dtype=torch.int64), 1, top_k=1).tolist() == pytest.approx([1.0])


def test_load_balancing_gradient_equals_finite_differences():
    logits_LTE = torch.randn(2, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sequence_of_T = torch.tensor([0, 0, 1, 1, 1, -1])

    def loss(logits):
        return load_balancing_loss(logits, sequence_of_T, 2, top_k=2).sum()

    (gradient_LTE,) = torch.autograd.grad(loss(logits_LTE.requires_grad_()), [logits_LTE])
    direction = torch.randn(logits_LTE.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    slope = float(loss(logits_LTE + 1e-4 * direction) - loss(logits_LTE - 1e-4 * direction)) / 2e-4
    assert float((gradient_LTE * direction).sum()) == pytest.approx(slope, rel=1e-3)
