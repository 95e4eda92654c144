import numpy as np
import pytest
import torch

from rlflow.algorithms.batch_plan import MicroBatch
from rlflow.errors import LearnerError
from rlflow.learner.attention import NAME, register
from rlflow.learner.policy_model import PolicyModel, trainable_parameters
from rlflow.learner.sequences import TrainSequence, build_micro_batch
from tests.unit.learner.tiny_models import tiny_qwen3


def _sequence(length: int) -> TrainSequence:
    ids = np.random.default_rng(length).integers(0, 40, length)
    return TrainSequence(ids, np.ones(length, np.float32))


SEQUENCES = {i: _sequence(length) for i, length in enumerate((5, 2, 9, 5))}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("packing", [True, False])
def test_scores_are_log_softmax_of_the_plain_model(tied, packing):
    register()
    policy, plain = PolicyModel(tiny_qwen3(tied=tied, attention=NAME)), tiny_qwen3(tied=tied)
    batch = build_micro_batch(
        MicroBatch(tuple(SEQUENCES)), SEQUENCES, dict.fromkeys(SEQUENCES, 1.0), packing=packing, device=torch.device("cpu")
    )
    with torch.no_grad():
        scores = policy(batch, 0.7).scores
        for number, logprobs in batch.split(scores.logprobs_N).items():
            ids = torch.from_numpy(SEQUENCES[number].token_ids)[None]
            expected = (plain(ids).logits[0, :-1] / 0.7).log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
            torch.testing.assert_close(logprobs, expected, rtol=0, atol=1e-5)


def test_an_empty_batch_of_trained_tokens_has_a_gradient_of_zero():
    register()
    policy = PolicyModel(tiny_qwen3(attention=NAME))
    untrained = {0: TrainSequence(np.arange(4), np.zeros(4, np.float32))}
    batch = build_micro_batch(MicroBatch((0,)), untrained, {0: 1.0}, packing=True, device=torch.device("cpu"))
    scores = policy(batch, 1.0).scores
    assert scores.logprobs_N.shape == (0,)
    scores.logprobs_N.sum().backward()
    gradients = [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]
    assert all(not gradient.any() for gradient in gradients)


def test_models_that_transform_logits_are_refused():
    model = tiny_qwen3()
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(LearnerError, match="final_logit_softcapping"):
        PolicyModel(model)


def test_only_matrices_decay():
    policy = PolicyModel(tiny_qwen3(tied=False))
    decayed, others = trainable_parameters(policy, 0.1)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert {p.ndim for p in decayed["params"]} == {2} and {p.ndim for p in others["params"]} == {1}
    assert len(decayed["params"]) + len(others["params"]) == len(list(policy.parameters()))


def test_frozen_parameters_are_not_trained():
    model = torch.nn.Linear(2, 3, bias=False)
    assert len(trainable_parameters(model, 0.1)) == 1
    model.requires_grad_(False)
    assert trainable_parameters(model, 0.1) == []
