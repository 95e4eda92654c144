import math
from types import SimpleNamespace

import pytest
import torch

from rlflow.algorithms import fused_logprobs as module
from rlflow.algorithms.fused_logprobs import fused_logprobs
from rlflow.algorithms.losses import SmoothedCrossEntropy

N, H, V = 23, 8, 37
FLOAT_BYTES = 4


def problem(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden_NH = torch.randn(N, H, generator=generator).to(dtype).requires_grad_()
    weight_VH = torch.randn(V, H, generator=generator).to(dtype).requires_grad_()
    targets_N = torch.randint(V, (N,), generator=generator)
    targets_N[::3] = (hidden_NH @ weight_VH.T).argmax(-1)[::3]
    return hidden_NH, weight_VH, targets_N


def plain(hidden_NH, weight_VH, targets_N, temperature):
    """The same numbers through log_softmax in float64."""
    logits = hidden_NH.double() @ weight_VH.double().T / temperature
    logprobs_NV = logits.log_softmax(-1)
    logprobs_N = logprobs_NV.gather(-1, targets_N[:, None]).squeeze(-1)
    entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(-1)
    return logprobs_N, entropy_N, logits.argmax(-1) == targets_N


def gradients(logprobs_N, hidden_NH, weight_VH):
    upstream_N = torch.linspace(-1, 2, N, dtype=logprobs_N.dtype)
    return torch.autograd.grad((logprobs_N * upstream_N).sum(), [hidden_NH, weight_VH])


def test_golden_numbers():
    # logits ln 1, ln 2, ln 5 are probabilities 1/8, 2/8, 5/8
    logits = torch.tensor([[1.0, 2.0, 5.0]]).log()
    scores = fused_logprobs(torch.ones(2, 1), logits.T.contiguous(), torch.tensor([1, 2]), 1.0)
    assert scores.logprobs_N.tolist() == pytest.approx([math.log(2 / 8), math.log(5 / 8)])
    entropy = -sum(p * math.log(p) for p in (1 / 8, 2 / 8, 5 / 8))
    assert scores.entropy_N.tolist() == pytest.approx([entropy, entropy])
    assert scores.correct_N.tolist() == [False, True]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_equal_to_plain_log_softmax(temperature):
    hidden_NH, weight_VH, targets_N = problem()
    scores = fused_logprobs(hidden_NH, weight_VH, targets_N, temperature)
    logprobs_N, entropy_N, correct_N = plain(hidden_NH, weight_VH, targets_N, temperature)
    torch.testing.assert_close(scores.logprobs_N.double(), logprobs_N, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.entropy_N.double(), entropy_N, rtol=1e-5, atol=5e-5)
    assert torch.equal(scores.correct_N, correct_N)
    assert 0 < correct_N.sum() < N, "the test sees both cases"


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_gradients_equal_those_of_plain_log_softmax(temperature):
    hidden_NH, weight_VH, targets_N = problem()
    ours = gradients(fused_logprobs(hidden_NH, weight_VH, targets_N, temperature).logprobs_N, hidden_NH, weight_VH)
    theirs = gradients(plain(hidden_NH, weight_VH, targets_N, temperature)[0], hidden_NH, weight_VH)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_gradients_equal_finite_differences():
    hidden_NH, weight_VH, targets_N = problem()
    upstream_N = torch.linspace(-1, 2, N)
    fused = gradients(fused_logprobs(hidden_NH, weight_VH, targets_N, 1.3).logprobs_N, hidden_NH, weight_VH)
    for position, gradient in enumerate(fused):
        direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(position))

        def loss(shift, position=position, direction=direction):
            moved = [hidden_NH.detach().double(), weight_VH.detach().double()]
            moved[position] = moved[position] + shift * direction.double()
            return float((plain(*moved, targets_N, 1.3)[0] * upstream_N).sum())

        slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("count", [0, 1, 127, 1000, 4097, 16384])
@pytest.mark.parametrize("most", [3, 128, 300, 1150, 20000])
def test_chunks_are_nearly_alike_and_none_is_too_large(monkeypatch, count, most):
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * 50 * most)
    chunks = module.token_chunks(torch.zeros(count, 2), torch.zeros(50, 2))
    assert [position for chunk in chunks for position in range(count)[chunk]] == list(range(count))
    sizes = [chunk.stop - chunk.start for chunk in chunks]
    assert not sizes or (max(sizes) <= most and max(sizes) - min(sizes) <= 2 * 128)
    if most >= 128:
        assert all(chunk.start % 128 == 0 for chunk in chunks)


@pytest.mark.parametrize("tokens_per_chunk", [1, 4, 22, 23, 100])
def test_chunks_change_nothing(monkeypatch, tokens_per_chunk):
    hidden_NH, weight_VH, targets_N = problem()
    whole = fused_logprobs(hidden_NH, weight_VH, targets_N, 0.9)
    whole_gradients = gradients(whole.logprobs_N, hidden_NH, weight_VH)
    monkeypatch.setattr(module, "CHUNK_BYTES", tokens_per_chunk * V * FLOAT_BYTES)
    chunked = fused_logprobs(hidden_NH, weight_VH, targets_N, 0.9)
    torch.testing.assert_close(tuple(chunked), tuple(whole), rtol=1e-5, atol=5e-5)
    torch.testing.assert_close(gradients(chunked.logprobs_N, hidden_NH, weight_VH), whole_gradients, rtol=1e-5, atol=1e-5)


def test_a_vocabulary_larger_than_a_chunk_goes_token_by_token(monkeypatch):
    hidden_NH, weight_VH, targets_N = problem()
    monkeypatch.setattr(module, "CHUNK_BYTES", (V - 1) * FLOAT_BYTES)
    scores = fused_logprobs(hidden_NH, weight_VH, targets_N, 1.0)
    expected_N = plain(hidden_NH, weight_VH, targets_N, 1.0)[0]
    torch.testing.assert_close(scores.logprobs_N.double(), expected_N, rtol=1e-5, atol=1e-5)


def test_the_logits_of_all_tokens_never_exist_at_once(monkeypatch):
    hidden_NH, weight_VH, targets_N = problem()
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * V * FLOAT_BYTES)
    sizes, compute_logits = [], module.chunk_logits

    def record(*arguments):
        logits = compute_logits(*arguments)
        sizes.append(logits.numel())
        return logits

    monkeypatch.setattr(module, "chunk_logits", record)
    logprobs_N = fused_logprobs(hidden_NH, weight_VH, targets_N, 1.0).logprobs_N
    saved = sum(tensor.numel() for tensor in logprobs_N.grad_fn.saved_tensors)
    logprobs_N.sum().backward()
    assert max(sizes) == 4 * V
    assert sum(sizes) == 2 * N * V, "forward and backward each compute every logit once"
    assert saved == N * H + V * H + 3 * N, "only inputs, targets, normalisers and entropies are kept"


def test_no_tokens():
    hidden_NH = torch.zeros(0, H, requires_grad=True)
    weight_VH = torch.ones(V, H, requires_grad=True)
    scores = fused_logprobs(hidden_NH, weight_VH, torch.zeros(0, dtype=torch.int64), 1.0)
    assert {len(part) for part in scores} == {0}
    scores.logprobs_N.sum().backward()
    assert hidden_NH.grad.shape == (0, H)
    assert torch.equal(weight_VH.grad, torch.zeros(V, H))


def test_a_frozen_head_gets_no_gradient():
    hidden_NH, weight_VH, targets_N = problem()
    weight_VH = weight_VH.detach()
    fused_logprobs(hidden_NH, weight_VH, targets_N, 1.0).logprobs_N.sum().backward()
    (expected,) = torch.autograd.grad(plain(hidden_NH, weight_VH, targets_N, 1.0)[0].sum(), [hidden_NH])
    torch.testing.assert_close(hidden_NH.grad, expected, rtol=1e-5, atol=1e-5)


def test_correctness_is_without_gradient():
    hidden_NH, weight_VH, targets_N = problem()
    scores = fused_logprobs(hidden_NH, weight_VH, targets_N, 1.0)
    assert scores.logprobs_N.requires_grad and scores.entropy_N.requires_grad
    assert not scores.correct_N.requires_grad


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("tokens_per_chunk", [5, 100])
def test_gradients_through_the_entropy(monkeypatch, share, tokens_per_chunk):
    """`share` of the target's log-probability beside the entropy."""
    monkeypatch.setattr(module, "CHUNK_BYTES", tokens_per_chunk * V * FLOAT_BYTES)
    hidden_NH, weight_VH, targets_N = problem()
    scores = fused_logprobs(hidden_NH, weight_VH, targets_N, 1.3)
    logprobs_N, entropy_N, _ = plain(hidden_NH, weight_VH, targets_N, 1.3)
    ours = gradients(share * scores.logprobs_N + scores.entropy_N if share else scores.entropy_N, hidden_NH, weight_VH)
    theirs = gradients(share * logprobs_N + entropy_N, hidden_NH, weight_VH)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_entropy_gradient_equals_finite_differences_of_the_entropy():
    hidden_NH, weight_VH, targets_N = problem()
    upstream_N = torch.linspace(-1, 2, N)
    fused = gradients(fused_logprobs(hidden_NH, weight_VH, targets_N, 0.8).entropy_N, hidden_NH, weight_VH)
    for position, gradient in enumerate(fused):
        direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(position))

        def loss(shift, position=position, direction=direction):
            moved = [hidden_NH.detach().double(), weight_VH.detach().double()]
            moved[position] = moved[position] + shift * direction.double()
            return float((plain(*moved, targets_N, 0.8)[1] * upstream_N).sum())

        slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-4)


def test_no_gradient_through_the_entropy_is_computed_where_none_is_asked_for(monkeypatch):
    asked = []
    to_gradient = module._PlainRowOperations.logits_to_gradient
    monkeypatch.setattr(
        module._PlainRowOperations,
        "logits_to_gradient",
        lambda *arguments: (asked.append(arguments[-1] is not None), to_gradient(*arguments)),
    )
    for use in (lambda scores: scores.logprobs_N, lambda scores: scores.logprobs_N + scores.entropy_N):
        use(fused_logprobs(*problem(), 1.0)).sum().backward()
    assert asked == [False, True]


def test_bfloat16_inputs_give_float32_scores_and_bfloat16_gradients():
    hidden_NH, weight_VH, targets_N = problem(torch.bfloat16)
    scores = fused_logprobs(hidden_NH, weight_VH, targets_N, 1.0)
    assert scores.logprobs_N.dtype == scores.entropy_N.dtype == torch.float32
    expected_N, entropy_N, _ = plain(hidden_NH, weight_VH, targets_N, 1.0)
    # a logit of magnitude 8 is rounded to 2^-6 at worst
    torch.testing.assert_close(scores.logprobs_N.double(), expected_N, rtol=0, atol=0.05)
    torch.testing.assert_close(scores.entropy_N.double(), entropy_N, rtol=0, atol=0.05)
    ours = gradients(scores.logprobs_N, hidden_NH, weight_VH)
    for gradient, exact in zip(ours, gradients(expected_N, hidden_NH, weight_VH), strict=True):
        assert gradient.dtype == torch.bfloat16
        assert (gradient - exact).norm() < 0.02 * exact.norm()


def test_huge_logits_stay_finite():
    hidden_NH = torch.tensor([[1e4], [1e4]], requires_grad=True)
    weight_VH = torch.tensor([[1.0], [0.0], [-1.0]], requires_grad=True)
    scores = fused_logprobs(hidden_NH, weight_VH, torch.tensor([0, 1]), 1.0)
    assert scores.logprobs_N.tolist() == [0.0, -1e4]
    assert scores.entropy_N.tolist() == [0.0, 0.0]
    scores.logprobs_N.sum().backward()
    assert torch.isfinite(hidden_NH.grad).all()
    assert torch.isfinite(weight_VH.grad).all()


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_mean_log_probabilities_and_their_gradients(share):
    """`share` of the target's log-probability beside the mean over the vocabulary."""
    hidden_NH, weight_VH, targets_N = problem()
    scores = fused_logprobs(hidden_NH, weight_VH, targets_N, 1.3)
    mean_N = (hidden_NH.double() @ weight_VH.double().T / 1.3).log_softmax(-1).mean(-1)
    torch.testing.assert_close(scores.mean_logprobs_N.double(), mean_N, rtol=1e-5, atol=1e-5)
    ours_N = share * scores.logprobs_N + scores.mean_logprobs_N if share else scores.mean_logprobs_N
    theirs_N = share * plain(hidden_NH, weight_VH, targets_N, 1.3)[0] + mean_N
    ours, theirs = gradients(ours_N, hidden_NH, weight_VH), gradients(theirs_N, hidden_NH, weight_VH)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("trains_weight", [True, False])
@pytest.mark.parametrize("size", [1.0, 1e-24])
def test_gradients_computed_with_the_scores_are_those_computed_afterwards(monkeypatch, dtype, smoothing, trains_weight, size):
    monkeypatch.setattr(module, "CHUNK_BYTES", 5 * V * dtype.itemsize)
    hidden_NH, weight_VH, targets_N = problem(dtype)
    inputs = [hidden_NH, weight_VH.requires_grad_(trains_weight)][: 1 + trains_weight]
    weights_N = size * torch.linspace(0, 0.5, N)
    loss = SmoothedCrossEntropy(smoothing)

    def losses(slopes):
        scores = fused_logprobs(hidden_NH, weight_VH, targets_N, 0.7, slopes)
        token_losses_N, _ = loss(SimpleNamespace(**scores._asdict(), counts=(N,)))
        return scores, 3 * (token_losses_N * weights_N).sum()

    expected, later = losses(None)
    scores, at_once = losses(loss.slopes(weights_N, torch.zeros(N), {}))
    for value, wanted in zip(scores, expected, strict=True):
        assert torch.equal(value, wanted)
    for ours, theirs in zip(torch.autograd.grad(at_once, inputs), torch.autograd.grad(later, inputs), strict=True):
        difference, whole = (ours - theirs).double().norm(), theirs.double().norm()
        assert difference < (1e-6 if dtype == torch.float32 else 1e-2) * whole


def test_slopes_of_another_loss_are_refused():
    hidden_NH, weight_VH, targets_N = problem()
    scores = fused_logprobs(
        hidden_NH, weight_VH, targets_N, 1.0, SmoothedCrossEntropy().slopes(torch.ones(N), torch.zeros(N), {})
    )
    with pytest.raises(AssertionError, match="not the one that the slopes are of"):
        torch.autograd.grad((scores.logprobs_N + scores.entropy_N).sum(), [hidden_NH])


def test_without_weights_there_is_no_gradient():
    hidden_NH, weight_VH, targets_N = problem()
    scores = fused_logprobs(
        hidden_NH, weight_VH, targets_N, 1.0, SmoothedCrossEntropy().slopes(torch.zeros(N), torch.zeros(N), {})
    )
    (gradient,) = torch.autograd.grad((scores.logprobs_N * 0).sum(), [hidden_NH])
    assert torch.equal(gradient, torch.zeros_like(gradient))
