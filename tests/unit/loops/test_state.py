import json

import pytest

from rlflow.loops.state import LoopState


def test_a_state_survives_its_checkpoint():
    state = LoopState(step=7, cursor=56, weight_version=9, best_evaluation=0.5, evaluations_since_best=2)
    stored = json.loads(json.dumps(state.to_dict()))
    assert LoopState.from_dict(stored) == state


def test_a_checkpoint_may_hold_more():
    stored = {**LoopState(1, 2, 3).to_dict(), "world_size": 4, "torch_rng": b""}
    assert LoopState.from_dict(stored) == LoopState(1, 2, 3)


def test_a_missing_position_is_an_error_and_not_a_fresh_start():
    with pytest.raises(KeyError, match="cursor"):
        LoopState.from_dict({"step": 1, "weight_version": 3})
