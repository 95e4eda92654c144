import pytest

from rlflow.errors import SpecError
from rlflow.learner.deepspeed_config import deepspeed_config
from rlflow.spec.learner import LearnerSpec, OptimizerSpec


def test_gradients_of_bfloat16_accumulate_in_float32():
    config = deepspeed_config(LearnerSpec(), dtype="bfloat16", on_gpu=True)
    assert config["bf16"] == {"enabled": True}
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert "bf16" not in deepspeed_config(LearnerSpec(), dtype="float32", on_gpu=True)


def test_stage_0_needs_float32():
    spec = LearnerSpec(zero_stage=0)
    with pytest.raises(SpecError, match=r"learner\.zero_stage: 0 needs model\.dtype float32, not bfloat16"):
        deepspeed_config(spec, dtype="bfloat16", on_gpu=True)


@pytest.mark.parametrize(("stage", "clipping"), [(0, 0.0), (1, 0.7), (3, 0.7)])
def test_deepspeed_clips_above_stage_0(stage, clipping):
    config = deepspeed_config(LearnerSpec(zero_stage=stage, max_grad_norm=0.7), dtype="float32", on_gpu=False)
    assert config["zero_optimization"]["stage"] == stage
    assert config["gradient_clipping"] == clipping


@pytest.mark.parametrize(
    ("on_gpu", "offload", "own"),
    [
        (False, False, {"torch_adam": True, "fused": False}),
        (True, False, {"torch_adam": True, "fused": True}),
        (True, True, {}),
    ],
)
def test_optimiser(on_gpu, offload, own):
    optimizer = OptimizerSpec(learning_rate=2e-5, betas=(0.8, 0.9), epsilon=1e-7, weight_decay=0.05)
    spec = LearnerSpec(optimizer=optimizer, offload_optimizer=offload)
    config = deepspeed_config(spec, dtype="bfloat16", on_gpu=on_gpu)
    base = {"lr": 2e-5, "betas": [0.8, 0.9], "eps": 1e-7, "weight_decay": 0.05}
    assert config["optimizer"]["params"] == base | own
    assert ("offload_optimizer" in config["zero_optimization"]) == offload
