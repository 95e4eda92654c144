"""The plan's estimate against what was measured on one H100 (reserved memory in tests/benchmarks/sft.py; all of it in jobs)."""

import pytest

from rlflow.algorithms import fused_logprobs
from rlflow.jobs import memory
from rlflow.jobs.memory import estimate_memory
from rlflow.jobs.model_facts import ModelFacts
from rlflow.jobs.settle import settle
from rlflow.spec.load import parse_job
from rlflow.spec.model import LoraSpec, ModelSpec

MEASURED_GIB = [
    ("qwen3-1.7b", 1, 16384, 69.0),
    ("qwen3-1.7b", 3, 16384, 66.8),
    ("qwen3-0.6b", 3, 29500, 51.0),  # micro-batches of at most 32,768 tokens, evenly filled
]
FACTS = {
    "qwen3-0.6b": ModelFacts(596_049_920, 155_582_464, 28, 1024, 16, 8, 128, 3072, 151936, 40960),
    "qwen3-1.7b": ModelFacts(1_720_574_976, 311_164_928, 28, 2048, 16, 8, 128, 6144, 151936, 40960),
}


def sft(**learner):
    return parse_job(
        {
            "kind": "sft",
            "run": {"name": "a"},
            "model": {"path": "m"},
            "data": {"sources": ["x.jsonl"]},
            "steps": 1,
            "learner": learner,
        }
    )


def grpo(**fields):
    return parse_job(
        {
            "kind": "grpo",
            "run": {"name": "a"},
            "model": {"path": "m"},
            "data": {"sources": ["x.jsonl"], "max_prompt_tokens": 64},
            "rewards": [{"type": "accuracy"}],
            "prompts_per_step": 32,
            "steps": 1,
            **fields,
        }
    )


@pytest.mark.parametrize(("shape", "stage", "tokens", "measured"), MEASURED_GIB)
def test_the_estimate_is_within_15_percent(shape, stage, tokens, measured):
    job = sft(zero_stage=stage, micro_batch_tokens=tokens, gradient_checkpointing="none")
    estimate = estimate_memory(job, FACTS[shape], on_gpu=True, device_gib=79.2)
    assert estimate.peak == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize(("residency", "measured_peak", "measured_host"), [("turns", 24.7, 7.73), ("together", 40.0, 0.0)])
def test_the_estimate_of_a_job_that_samples_is_within_15_percent(residency, measured_peak, measured_host):
    """tests/benchmarks/grpo_step.py; in host memory, what the learner's process has more of by turns."""
    learner = {"micro_batch_tokens": 32768, "gradient_checkpointing": "full"}
    facts = FACTS["qwen3-0.6b"]
    job = settle(grpo(residency=residency, learner=learner), facts, on_gpu=True, device_gib=79.2)
    estimate = estimate_memory(job, facts, on_gpu=True, device_gib=79.2)
    assert estimate.peak == pytest.approx(measured_peak, rel=0.15)
    assert estimate.host == pytest.approx(measured_host, rel=0.15)
    assert estimate.learner_peak == pytest.approx(18.5, rel=0.15), "by turns, while it learns"


def test_a_small_model_stays_beside_its_engine_with_all_activations():
    job = settle(grpo(), FACTS["qwen3-0.6b"], on_gpu=True, device_gib=79.2)
    assert (job.residency, job.learner.gradient_checkpointing, job.learner.zero_stage) == ("together", "none", 1)
    assert 0.2 < job.rollout.gpu_memory_utilization < 0.4


def test_what_does_not_fit_beside_each_other_takes_turns():
    rollout = {"max_completion_tokens": 8192}
    job = settle(grpo(rollout=rollout), FACTS["qwen3-1.7b"], on_gpu=True, device_gib=79.2)
    assert job.residency == "turns"
    assert job.rollout.gpu_memory_utilization == 0.85


def test_a_small_device_recomputes():
    modes = [
        settle(sft(), FACTS["qwen3-1.7b"], on_gpu=True, device_gib=gib).learner.gradient_checkpointing for gib in (79, 64, 45)
    ]
    assert modes == ["none", "selective", "full"]


def test_more_ranks_partition_what_one_cannot_hold():
    stages = [
        settle(sft(num_ranks=8), FACTS["qwen3-1.7b"], on_gpu=True, device_gib=gib).learner.zero_stage for gib in (79, 30, 20)
    ]
    assert stages == sorted(stages) and stages[0] == 1 and stages[-1] > 1


def test_a_base_in_4_bits_takes_a_quarter_and_is_never_partitioned():
    facts = FACTS["qwen3-1.7b"]
    linear = facts.num_parameters - facts.embedding_parameters
    plain, quantised = (
        estimate_memory(_with_adapters(sft(zero_stage=1), **lora), facts, on_gpu=True, device_gib=80).learner_states
        for lora in ({}, {"quantization": "nf4"})
    )
    assert plain - quantised == pytest.approx(linear * (2 - 4.5 / 8) / 2**30)
    for known in (facts, None):
        job = settle(_with_adapters(sft(num_ranks=8), quantization="nf4"), known, on_gpu=True, device_gib=2)
        assert job.learner.zero_stage == 2


def _with_adapters(job, **lora):
    return job.model_copy(update={"model": ModelSpec(path="m", lora=LoraSpec(**lora))})


def test_what_the_spec_says_stays():
    job = grpo(
        residency="turns", learner={"zero_stage": 2, "gradient_checkpointing": "full"}, rollout={"gpu_memory_utilization": 0.5}
    )
    settled = settle(job, FACTS["qwen3-0.6b"], on_gpu=True, device_gib=79.2)
    assert settled == job


def test_an_unknown_model_gets_the_most_frugal():
    job = settle(grpo(learner={"num_ranks": 2}), None, on_gpu=True, device_gib=79.2)
    assert (job.residency, job.learner.gradient_checkpointing, job.learner.zero_stage) == ("turns", "full", 3)


def test_without_gpus_nothing_moves():
    job = settle(grpo(), FACTS["qwen3-0.6b"], on_gpu=False, device_gib=24.0)
    assert job.residency == "together"


# ---- models beside the trained one


LARGE, SMALL = FACTS["qwen3-1.7b"], FACTS["qwen3-0.6b"]


def estimate(job, others, **changes):
    return estimate_memory(job, SMALL, others, **{"on_gpu": True, "device_gib": 79.2, **changes})


def gkd(**fields):
    return grpo(**{"kind": "gkd", "teacher": {"path": "t"}, "residency": "turns", "learner": {"zero_stage": 1}, **fields})


def test_a_teacher_counts_by_its_own_size_and_has_no_optimiser():
    none, large, small = (estimate(grpo(residency="turns", learner={"zero_stage": 1}), {}), *(
        estimate(gkd(), {"teacher": facts}) for facts in (LARGE, SMALL)
    ))  # fmt: skip
    assert large.peak == small.peak == none.peak, "while it has its turn it needs less than the student while training"
    weights = LARGE.num_parameters * 2 / 2**30
    assert large.host == pytest.approx(none.host + weights)
    together = estimate(gkd(residency="together"), {"teacher": LARGE}).learner_peak
    assert weights < together - none.learner_peak < 2.5 * weights
    assert estimate(gkd(), {}) == small, "an unknown teacher is as large as the student"


def test_a_critic_of_its_own_size_trains():
    job = grpo(kind="ppo", critic={"path": "c"}, residency="turns", learner={"zero_stage": 1})
    assert estimate(job, {"critic": LARGE}).learner_peak > 2 * estimate(job, {"critic": SMALL}).learner_peak


MODEL_REWARD = {"type": "model", "path": "r", "batch_size": 4}


@pytest.mark.parametrize("residency", ["together", "turns"])
def test_a_reward_model_stays_whatever_has_its_turn(residency):
    plain = estimate(grpo(residency=residency), {})
    beside = estimate(grpo(residency=residency, rewards=[MODEL_REWARD]), {"rewards[0]": LARGE})
    assert beside.rewards > LARGE.num_parameters * 2 / 2**30 and plain.rewards == 0
    assert beside.peak == pytest.approx(plain.peak + beside.rewards)


def test_every_worker_of_a_device_holds_a_model():
    job = grpo(rewards=[MODEL_REWARD], reward_pool={"num_workers": 3}, learner={"num_ranks": 2})
    assert estimate(job, {}).rewards == pytest.approx(2 * estimate(grpo(rewards=[MODEL_REWARD]), {}).rewards)
    assert estimate(grpo(rewards=[{**MODEL_REWARD, "device": "cpu"}]), {}).rewards == 0


def test_the_engine_leaves_the_reward_model_its_memory():
    wants_all = {"max_completion_tokens": 8192}
    job = grpo(rollout=wants_all, rewards=[MODEL_REWARD])
    share = settle(job, LARGE, {"rewards[0]": LARGE}, on_gpu=True, device_gib=79.2).rollout.gpu_memory_utilization
    gib = estimate(job, {"rewards[0]": LARGE}).rewards
    assert share == pytest.approx(0.85 - gib / 79.2, abs=1e-3)
    infer = parse_job({"kind": "infer", **job.model_dump(include={"run", "model", "data"}),
                       "rewards": [MODEL_REWARD]})  # fmt: skip
    assert settle(infer, LARGE, {}, on_gpu=True, device_gib=79.2).rollout.gpu_memory_utilization < 0.85


def test_a_teacher_has_gpus_of_its_own_or_shares_the_machine():
    alone = gkd(teacher={"path": "t", "num_ranks": 2})
    without = grpo(residency="turns", learner={"zero_stage": 1})
    student, beside = estimate(without, {}), estimate(alone, {"teacher": LARGE})
    assert (beside.peak, beside.host) == (student.peak, student.host), "nothing of it is on the student's devices"
    half = LARGE.num_parameters * 2 / 2 / 2**30
    assert half < beside.teacher < half + 4
    on_cpu = {"on_gpu": False}
    assert estimate(alone, {}, **on_cpu).peak == pytest.approx(
        estimate(without, {}, **on_cpu).peak + estimate(alone, {}, **on_cpu).teacher
    )


def test_judges_have_gpus_of_their_own_or_share_the_machine():
    judge = {"type": "judge", "model": "j", "prompt": "{completion}", "engine": {"num_workers": 2, "cpu_kv_cache_gib": 3}}
    plain, judged = grpo(), grpo(rewards=[{"type": "accuracy"}, judge])
    facts, others = FACTS["qwen3-0.6b"], {"rewards[1].model": FACTS["qwen3-1.7b"]}

    def estimate(job, **how):
        return estimate_memory(job, facts, others, device_gib=79.2, **how)

    assert estimate(judged, on_gpu=True).peak == estimate(plain, on_gpu=True).peak
    cache = 8192 * 2 * 28 * 8 * 128 * 2 / 2**30
    assert estimate(judged, on_gpu=True).judges == pytest.approx(1_720_574_976 * 2 / 2**30 + cache + 4.5)
    both = 2 * (2 * 1_720_574_976 * 2 / 2**30 + 3 + 1.5)
    assert estimate(judged, on_gpu=False).judges == pytest.approx(both)
    assert estimate(judged, on_gpu=False).peak == pytest.approx(estimate(plain, on_gpu=False).peak + both)
    assert estimate(plain, on_gpu=False).judges == 0


def test_the_plan_knows_the_size_of_the_learners_chunks():
    assert memory.LOGITS_BYTES == fused_logprobs.CHUNK_BYTES
