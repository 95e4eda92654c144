import pytest
import torch

from rlflow.learner.reference import SwappedReference


def _trained_model() -> tuple[torch.nn.Linear, SwappedReference, torch.Tensor, torch.Tensor]:
    """A model that has moved on from its reference, and its weights then and now."""
    model = torch.nn.Linear(3, 2)
    start = model.weight.detach().clone()
    reference = SwappedReference(model)
    with torch.no_grad():
        model.weight.mul_(2.0)
    return model, reference, start, model.weight.detach().clone()


def test_the_starting_weights_are_active_inside():
    model, reference, start, now = _trained_model()
    for _ in range(2):
        with reference.active():
            assert torch.equal(model.weight, start)
        assert torch.equal(model.weight, now)


def test_the_policy_comes_back_after_an_error():
    model, reference, _, now = _trained_model()
    with pytest.raises(ValueError, match="scoring failed"), reference.active():
        raise ValueError("scoring failed")
    assert torch.equal(model.weight, now)


def test_a_refreshed_reference_is_the_policy_of_that_moment(tmp_path):
    model, reference, start, now = _trained_model()
    reference.save(tmp_path / "untouched.pt")
    assert not (tmp_path / "untouched.pt").exists(), "the model at the start need not be saved"
    reference.refresh()
    reference.save(tmp_path / "reference.pt")
    with torch.no_grad():
        model.weight.zero_()
    with reference.active():
        assert torch.equal(model.weight, now)
    resumed = SwappedReference(model)
    resumed.load(tmp_path / "nothing.pt")
    with resumed.active():
        assert not model.weight.any()
    resumed.load(tmp_path / "reference.pt")
    with resumed.active():
        assert torch.equal(model.weight, now)
    assert not torch.equal(start, now)
