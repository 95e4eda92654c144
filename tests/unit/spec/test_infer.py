import pytest

from rlflow.errors import SpecError
from rlflow.jobs.plan import Devices, plan_job
from rlflow.spec.load import parse_job, resolved

REWARDS = [{"type": "accuracy"}]


def infer(**changes):
    model = {"random": {"config": "qwen3-0.6b", "characters": "ab"}}
    return parse_job({"kind": "infer", "run": {"name": "i"}, "model": model, "data": {"sources": ["org/rows"]}, **changes})


def test_a_resolved_spec_says_the_same():
    job = infer(infer={"num_samples": 4, "keep": "best", "min_reward": 0.5}, rewards=REWARDS, rollout={"temperature": 0.7})
    assert parse_job(resolved(job)) == job


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"run": {"name": "i", "save_every": 5}}, "run.save_every: a job of kind infer does not train; leave it out"),
        ({"data": {"sources": ["org/rows"], "held_out": 5}}, "data.held_out: a job of kind infer does not train"),
        ({"data": {"sources": ["org/rows"], "overlong": "drop"}}, "data.overlong: a job of kind infer does not train"),
        ({"model": {"path": "m", "lora": {}}}, "model.lora: a job of kind infer does not train"),
        ({"infer": {"keep": "best", "num_samples": 2}}, "infer.keep: the best answer is told by its reward; give rewards"),
        ({"infer": {"min_reward": 1}}, "infer.min_reward: give rewards"),
        ({"infer": {"keep": "best"}, "rewards": REWARDS}, "infer.keep: best of one answer; set infer.num_samples above 1"),
        (
            {"infer": {"num_samples": 2}, "rollout": {"temperature": 0}},
            "infer.num_samples: with rollout.temperature: 0 all answers to a row are the same",
        ),
        ({"reward_pool": {"num_workers": 2}}, "reward_pool: there are no rewards"),
        ({"steps": 3}, "steps: unknown field"),
    ],
)
def test_settings_that_would_do_nothing_are_errors(changes, line):
    with pytest.raises(SpecError, match=line.replace("(", r"\(")):
        infer(**changes)


def test_the_plan_places_engines_alone():
    plan = plan_job(infer(rollout={"num_workers": 2, "tensor_parallel_size": 2}), Devices("gpu", 4, 80.0))
    assert plan.problems == []
    assert plan.placement is not None and plan.memory is not None
    assert [(seat.role, seat.devices, seat.share) for seat in plan.placement.seats] == [
        ("rollout", (0, 1), 1.0),
        ("rollout", (2, 3), 1.0),
    ]
    assert plan.memory.learner_peak == 0 < plan.memory.peak == plan.memory.rollout


def test_the_plan_names_what_does_not_fit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.jsonl").write_text("")
    job = infer(rollout={"num_workers": 4}, infer={"output": "there.jsonl"}, adapter="nothing", data={"sources": ["a.jsonl"]})
    problems = "\n".join(plan_job(job, Devices("gpu", 2, 2.0)).problems)
    assert "infer.output: " in problems and "there.jsonl exists; choose another file, or remove it" in problems
    assert "rollout.num_workers x rollout.tensor_parallel_size: 4 engines need 4 GPUs, there are 2" in problems
    assert "data.sources[0].path: there is no file a.jsonl" in problems
    memory = "\n".join(plan_job(infer(), Devices("gpu", 1, 2.0)).problems)
    assert "rollout: about" in memory and "change rollout.tensor_parallel_size (more)" in memory


def test_the_plan_names_missing_adapters(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    problems = plan_job(infer(adapter="nothing"), Devices("gpu", 1, 80.0)).problems
    assert problems == [
        "adapter: nothing is neither a directory with adapter_config.json nor a run in runs that trained adapters"
    ]
