"""What the plan decides where a rank holds more than the trained model."""

from pathlib import Path

import pytest

from rlflow.jobs.memory import estimate_memory
from rlflow.jobs.model_facts import model_facts
from rlflow.jobs.settle import settle
from rlflow.spec.load import parse_job

FIELDS = {
    "run": {"name": "try"},
    "model": {"random": {"config": "qwen3-0.6b", "characters": "ab"}},
    "data": {"sources": ["a.csv"]},
    "rewards": [{"type": "accuracy"}],
    "learner": {"micro_batch_tokens": 2048},
    "steps": 3,
}
MORE = {"grpo": {}, "ppo": {}, "gkd": {"teacher": {"path": "t"}}}


def settled(kind, *, on_gpu, **changes):
    job = parse_job({"kind": kind, **FIELDS, **MORE[kind], **changes})
    facts = model_facts(job.model, Path("runs"))
    job = settle(job, facts, on_gpu=on_gpu, device_gib=80.0)
    return job, estimate_memory(job, facts, on_gpu=on_gpu, device_gib=80.0)


@pytest.mark.parametrize(("kind", "residency"), [("grpo", "together"), ("ppo", "turns"), ("gkd", "turns")])
def test_several_learners_take_turns_on_a_gpu(kind, residency):
    assert settled(kind, on_gpu=True)[0].residency == residency
    assert settled(kind, on_gpu=True, residency="together")[0].residency == "together", "as the spec says"
    assert settled(kind, on_gpu=False)[0].residency == "together"


def test_a_second_learner_needs_memory_only_where_both_stay():
    one, two = (settled(kind, on_gpu=True, residency="together")[1] for kind in ("grpo", "ppo"))
    assert two.peak == pytest.approx(one.peak + two.learner_peak / 2, rel=0.05)
    one, two = (settled(kind, on_gpu=True, residency="turns")[1] for kind in ("grpo", "ppo"))
    assert two.peak == one.peak and two.host == 2 * one.host
    assert settled("ppo", on_gpu=False)[1].peak > settled("grpo", on_gpu=False)[1].peak
