import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from rlflow.errors import UserError
from rlflow.learner.merge import merge_adapter, rewrite_model
from tests.unit.learner.tiny_models import tiny_qwen3


@pytest.fixture
def base(tmp_path):
    tiny_qwen3().save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def write_adapter(base, folder, **changes):
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, lora_alpha=3, target_modules="all-linear", **changes)
    )
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def test_the_merged_model_computes_what_the_adapters_do(base, tmp_path):
    check = merge_adapter(base, write_adapter(base, tmp_path / "adapter"), tmp_path / "out")
    assert check.max_difference < 1e-4 < 0.05 < check.adapter_effect
    merged, plain = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (tmp_path / "out", base))
    changed = {name for name in plain if not torch.equal(plain[name], merged[name])}
    assert changed == {name for name in plain if name.endswith("_proj.weight")}


def test_merging_rounds_once_to_the_type_that_is_asked_for(base, tmp_path):
    check = merge_adapter(base, write_adapter(base, tmp_path / "adapter"), tmp_path / "out", dtype="bfloat16")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.bfloat16
    assert check.mean_difference < check.adapter_effect / 5


def test_adapters_that_are_no_plain_lora_are_refused_by_what_they_compute(base, tmp_path):
    with pytest.raises(UserError, match="computes something else than beside it"):
        merge_adapter(base, write_adapter(base, tmp_path / "adapter", use_dora=True), tmp_path / "out")


def test_adapters_of_another_shape_do_not_fit(base, tmp_path):
    adapter = write_adapter(base, tmp_path / "adapter")
    other = tiny_qwen3()
    other.config.hidden_size = 16
    type(other)(other.config).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match=r"^adapter: .* does not fit"):
        merge_adapter(str(tmp_path / "other"), adapter, tmp_path / "out")


def test_a_model_is_written_in_shards_of_another_type(base, tmp_path):
    rewrite_model(base, tmp_path / "out", dtype="bfloat16", max_shard_size="20KB")
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 1
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    expected = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).state_dict()
    assert written.dtype == torch.bfloat16
    assert all(torch.equal(expected[name], tensor) for name, tensor in written.state_dict().items())


def test_a_quantised_base_is_refused(base, tmp_path):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(base)
    config.quantization_config = {"quant_method": "awq", "bits": 4}
    config.save_pretrained(base)
    with pytest.raises(UserError, match="is quantised"):
        merge_adapter(base, tmp_path, tmp_path / "out")
