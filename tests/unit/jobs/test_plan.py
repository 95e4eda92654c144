"""x of ranks that share experts or sequences, from packaged shapes alone."""

import io
import re
import sys
from typing import Any

import pytest
from rich.console import Console

from rlflow.jobs.plan import Devices, Plan, parse_devices, plan_job
from rlflow.spec.load import parse_job

EIGHT = parse_devices("8x80")


def spec(kind: str, model: str, **fields: Any) -> dict[str, Any]:
    """Of a packaged shape, with rows that nobody opens."""
    job = {"kind": kind, "run": {"name": "a"}, "model": {"path": f"Qwen/{model}"}, "data": {"sources": ["org/rows"]}, "steps": 1}
    return {**job, **fields}


def plan(model: str, **learner: Any) -> Plan:
    return plan_job(parse_job(spec("sft", model, learner=learner)), parse_devices("16x80"))


def test_experts_are_counted_and_must_be_divisible():
    planned = plan("Qwen3-30B-A3B", num_ranks=16, expert_parallel=8)
    assert planned.facts is not None
    assert (planned.facts.num_experts, planned.facts.num_parameters) == (128, 30_532_122_624)
    assert planned.facts.expert_parameters == 48 * 128 * 3 * 768 * 2048
    assert planned.problems == []
    assert plan("Qwen3-30B-A3B", num_ranks=12, expert_parallel=12).problems == [
        "learner.expert_parallel: 128 experts cannot be spread over 12 ranks"
    ]
    assert plan("Qwen3-8B", num_ranks=8, expert_parallel=8).problems == [
        "learner.expert_parallel: no experts cannot be spread over 8 ranks"
    ]


def test_spread_experts_leave_room_for_a_lower_stage():
    whole = plan("Qwen3-30B-A3B", num_ranks=16)
    spread = plan("Qwen3-30B-A3B", num_ranks=16, expert_parallel=8)
    assert (whole.job.learner.zero_stage, spread.job.learner.zero_stage) == (3, 1)


def test_sequences_are_shared_by_heads():
    assert plan("Qwen3-8B", num_ranks=16, sequence_parallel=16).problems == [], "8 key heads are doubled"
    assert plan("Qwen3-8B", num_ranks=12, sequence_parallel=12).problems == [
        "learner.sequence_parallel: 32 attention heads and 8 key heads cannot be divided by 12"
    ]


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_sharing_a_sequence_divides_what_is_kept_of_it(checkpointing):
    common = {"num_ranks": 8, "zero_stage": 3, "gradient_checkpointing": checkpointing}
    alone = plan("Qwen3-8B", micro_batch_tokens=16384, **common).memory
    shared = plan("Qwen3-8B", micro_batch_tokens=8 * 16384, sequence_parallel=8, **common).memory
    assert alone is not None and shared == alone


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


def ppo(tmp_path, *rewards):
    (tmp_path / "rows.jsonl").write_text('{"query": "a"}\n')
    dense = {**EXPERTS, "model_type": "qwen3"}
    dense = {name: value for name, value in dense.items() if "expert" not in name and "moe_" not in name}
    return parse_job(
        {
            "kind": "ppo",
            "run": {"name": "try", "dir": str(tmp_path / "runs")},
            "model": {"random": {"config": dense, "characters": "ab"}},
            "data": {"sources": [str(tmp_path / "rows.jsonl")]},
            "rewards": list(rewards),
            "steps": 1,
        }
    )


def test_a_reward_model_has_a_seat_on_a_gpu_and_may_be_trained_first(tmp_path):
    job = ppo(tmp_path, {"type": "model", "from_run": "rm"})
    (problem,) = plan_job(job, Devices("gpu", 1, 80.0)).problems
    assert problem == f"rewards[0].from_run: rm has no model in {tmp_path / 'runs'}; run that job first"
    planned = plan_job(job, Devices("gpu", 1, 80.0), earlier_runs=["rm"])
    assert planned.problems == []
    assert {seat.role: (seat.devices, seat.share) for seat in planned.placement.seats} == dict.fromkeys(
        ("learner", "rollout", "reward"), ((0,), 0.3333)
    )
    assert planned.memory.rewards > 0
    on_processor = plan_job(ppo(tmp_path, {"type": "model", "from_run": "rm", "device": "cpu"}), Devices("gpu", 1, 80.0), ["rm"])
    assert [seat.devices for seat in on_processor.placement.seats_of("reward")] == [()]


def test_a_reward_model_too_large_for_the_gpu_is_a_problem(tmp_path):
    job = ppo(tmp_path, {"type": "model", "path": "Qwen/Qwen3-14B"})
    assert plan_job(job, Devices("gpu", 1, 80.0)).problems == []
    (problem,) = plan_job(job, Devices("gpu", 1, 24.0)).problems
    assert "GiB are needed on each GPU, there are 24.0" in problem


def test_a_judge_must_fit_its_gpus():
    judge = {"type": "judge", "model": "Qwen/Qwen3-30B-A3B", "prompt": "{completion}", "engine": {}}

    def problems(devices: str) -> list[str]:
        job = spec("grpo", "Qwen3-0.6B", rewards=[judge], rollout={"max_completion_tokens": 256})
        return plan_job(parse_job(job), parse_devices(devices)).problems

    (problem,) = problems("2x40")
    assert problem.startswith("rewards: a judge needs about 62.")
    assert "there are 40.0; change its engine.tensor_parallel" in problem
    assert problems("2x80") == []
    judge["engine"] = {"tensor_parallel_size": 2}
    assert problems("3x40") == []


def test_a_teacher_on_gpus_of_its_own_must_fit_them_and_there_must_be_enough():
    def problems(ranks: int, devices: str) -> list[str]:
        teacher = {"path": "Qwen/Qwen3-14B", "num_ranks": ranks}
        job = spec("gkd", "Qwen3-0.6B", teacher=teacher, rollout={"max_completion_tokens": 256})
        return plan_job(parse_job(job), parse_devices(devices)).problems

    assert problems(1, "2x80") == problems(2, "3x40") == []
    (problem,) = problems(1, "2x24")
    assert problem.startswith("teacher: it needs about ") and "there are 24.0; change teacher.num_ranks (more)" in problem
    assert problems(1, "1x80") == [
        "learner.num_ranks, rollout.num_workers: 1 ranks and 1 engines and 1 teacher ranks need 2 GPUs, there are 1"
    ]


def test_kernels_of_gpus_are_refused_on_a_processor():
    job = parse_job(spec("sft", "Qwen3-0.6B", learner={"liger_kernel": True}))
    assert plan_job(job, Devices("cpu", 2, 1000.0)).problems == ["learner.liger_kernel: the kernels need a GPU; set it to auto"]
    assert plan_job(job, parse_devices("1x80")).problems == []


PROCESSOR = Devices("cpu", 4, 24.0)


def shown(planned: Plan) -> dict[str, float]:
    """The lines of the memory table, in GiB."""
    output = io.StringIO()
    Console(file=output, width=100).print(planned.render())
    return {name.strip(): float(gib) for name, gib in re.findall(r"^│ (.+?) *│ +([\d.]+) *│$", output.getvalue(), re.MULTILINE)}


def test_without_gpus_lines_are_sums_over_processes_that_add_up():
    engines = {"num_workers": 2, "max_completion_tokens": 64}
    changes = {"critic": {"path": "Qwen/Qwen3-1.7B"}, "rewards": [{"type": "accuracy"}], "rollout": engines}
    lines = {
        ranks: shown(plan_job(parse_job(spec("ppo", "Qwen3-0.6B", learner={"num_ranks": ranks}, **changes)), PROCESSOR))
        for ranks in (1, 4)
    }
    four = lines[4]
    states, peak = four["learner states, sum of 4 ranks"], four["learner peak, sum of 4 ranks"]
    assert (0.6 + 1.7) * 18 < states < peak, "bytes a parameter, of policy and critic"
    assert four["peak"] == pytest.approx(peak + four["rollout, sum of 2 engines"], abs=0.02)
    assert lines[1]["learner states"] < states and lines[1]["learner peak"] < peak


def test_too_few_cpus_hide_nothing_of_the_memory():
    accuracy = [{"type": "accuracy"}]
    many = parse_job(spec("grpo", "Qwen3-14B", rewards=accuracy, learner={"num_ranks": 16}))
    cpus, memory = plan_job(many, PROCESSOR).problems
    assert cpus.endswith("they need 8.5 CPUs, there are 4")
    assert "GiB are needed in the machine's memory, there are 24.0" in memory


def test_an_engine_of_several_processes_needs_what_each_of_them_needs():
    accuracy = [{"type": "accuracy"}]

    def gib(size: int) -> float:
        rollout = {"tensor_parallel_size": size, "cpu_kv_cache_gib": 3}
        return shown(plan_job(parse_job(spec("grpo", "Qwen3-0.6B", rewards=accuracy, rollout=rollout)), PROCESSOR))["rollout"]

    assert gib(2) - gib(1) == pytest.approx(3 + 2 * 1.5, abs=0.02), "the actor too"
    assert gib(4) - gib(2) == pytest.approx(2 * (3 + 1.5), abs=0.02)


def test_a_loss_of_a_module_beside_the_spec_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    (tmp_path / "losses_beside_the_spec.py").write_text("def mine(pairs): return -pairs.chosen_P")

    def problems(target: str) -> list[str]:
        return plan_job(
            parse_job(spec("dpo", "Qwen3-0.6B", dpo={"losses": [{"type": "plugin", "target": target}]})), EIGHT
        ).problems

    assert problems("losses_beside_the_spec:mine") == []
    (problem,) = problems("losses_beside_the_spec:yours")
    assert problem.startswith("dpo.losses[0].target: cannot import losses_beside_the_spec:yours")
