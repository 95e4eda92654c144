"""Problems that the plan finds from the model's configuration."""

from rlflow.jobs.plan import Devices, plan_job
from rlflow.spec.load import parse_job

EXPERTS = {
    "model_type": "qwen3_moe",
    **{"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16},
    **{"intermediate_size": 48, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2},
}


def problems(tmp_path, lora, **learner):
    (tmp_path / "rows.jsonl").write_text('{"query": "a", "response": "b"}\n')
    job = parse_job(
        {
            "kind": "sft",
            "run": {"name": "try", "dir": str(tmp_path)},
            "model": {"random": {"config": EXPERTS, "characters": "ab"}, "lora": lora},
            "data": {"sources": [str(tmp_path / "rows.jsonl")]},
            "learner": learner,
            "steps": 1,
        }
    )
    return plan_job(job, Devices("gpu", 1, 80.0)).problems


def test_what_adapters_of_experts_cannot_do_is_found_before_the_run(tmp_path):
    assert problems(tmp_path, {}) == []
    assert problems(tmp_path, {"target_modules": ["q_proj"], "dropout": 0.1}, zero_stage=3) == []
    assert problems(tmp_path, {}, zero_stage=3)[0].startswith("learner.zero_stage: adapters of a mixture's experts")
    assert problems(tmp_path, {"dropout": 0.1})[0].startswith("model.lora.dropout: ")
