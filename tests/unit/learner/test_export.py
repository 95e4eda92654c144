import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from rlflow.learner.export import WeightExporter
from rlflow.weights.buffers import open_buffer, read_bucket
from tests.unit.learner.tiny_models import tiny_qwen3, tiny_qwen3_moe


def _exported(exporter: WeightExporter) -> dict[str, torch.Tensor]:
    weights = {}
    for index, bucket in enumerate(exporter.buckets):
        memory = open_buffer(exporter.write_bucket(index))
        weights |= {name: tensor.clone() for name, tensor in read_bucket(memory, bucket)}
    exporter.release()
    return weights


def _with_adapters(model):
    """Adapters whose product is not zero."""
    model = get_peft_model(model, LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "down_proj"]))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bucket_bytes", [2**30, 20_000, 1])
def test_export_is_the_state_dict(tied, bucket_bytes):
    model = tiny_qwen3(tied=tied)
    weights = _exported(WeightExporter(model, bucket_bytes))
    assert ("lm_head.weight" in weights) != tied
    for name, tensor in model.state_dict().items():
        if name in weights or not tied:
            assert torch.equal(weights[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_are_merged_in_float32_and_the_model_is_left_alone(dtype):
    plain = tiny_qwen3().to(dtype)
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    model = _with_adapters(plain)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = _exported(WeightExporter(model))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert weights.keys() == before.keys() - {"lm_head.weight"}
    for name, weight in weights.items():
        expected = before[name].float()
        layer = "base_model.model." + name.removesuffix(".weight")
        if f"{layer}.lora_A.default.weight" in state:
            down, up = (state[f"{layer}.lora_{x}.default.weight"].float() for x in "AB")
            expected = expected + 1.5 * (up @ down)
        assert weight.dtype == dtype
        torch.testing.assert_close(weight.float(), expected.to(dtype).float(), rtol=0, atol=1e-6, msg=name)


def test_adapters_of_experts_are_merged_too():
    plain = tiny_qwen3_moe()
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    model = get_peft_model(plain, LoraConfig(r=2, lora_alpha=3, target_modules="all-linear", task_type="CAUSAL_LM"))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter) / 10
    weights = _exported(WeightExporter(model))
    assert weights.keys() == before.keys()
    for layer in ("experts.gate_up_proj", "experts.down_proj", "gate.weight"):
        name = f"model.layers.1.mlp.{layer}"
        assert not torch.allclose(weights[name], before[name]), name
    tokens = torch.arange(7)[None]
    with torch.no_grad():
        expected = model(tokens, use_cache=False).logits
        merged = tiny_qwen3_moe()
        merged.load_state_dict(weights)
        torch.testing.assert_close(merged(tokens, use_cache=False).logits, expected)


def test_the_buffer_is_reused():
    exporter = WeightExporter(tiny_qwen3(), 20_000)
    assert len(exporter.buckets) > 2
    handles = {exporter.write_bucket(index).payload for index in range(len(exporter.buckets))}
    assert len(handles) == 1
    exporter.release()


def test_exported_bytes_follow_the_model():
    model = tiny_qwen3()
    exporter = WeightExporter(model)
    first = _exported(exporter)["model.norm.weight"]
    with torch.no_grad():
        model.model.norm.weight.add_(1.0)
    np.testing.assert_allclose(_exported(exporter)["model.norm.weight"].numpy(), first.numpy() + 1.0)
