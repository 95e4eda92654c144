from pathlib import Path

import jsonschema
import pytest
from pydantic import BaseModel

import rlflow
from rlflow.spec.algorithm import GrpoSpec
from rlflow.spec.base import Spec
from rlflow.spec.jobs import JOB_KINDS, GrpoJob, SftJob, job_schema
from rlflow.spec.load import load_job, read_yaml, resolved
from rlflow.spec.model import ModelSpec, RandomModelSpec
from rlflow.spec.rollout import RolloutSpec

SPECS = sorted((Path(rlflow.__file__).parents[1] / "jobs" / "specs").glob("*.yaml"))
VALIDATOR = jsonschema.Draft202012Validator


def grpo_job(**changes):
    fields = {
        "kind": "grpo",
        "run": {"name": "try"},
        "model": {"path": "m"},
        "data": {"sources": ["a.csv"]},
        "rewards": [{"type": "accuracy"}],
        "steps": 1,
    }
    return GrpoJob.model_validate({**fields, **changes})


def all_specs(model):
    """A spec class and all that its fields may hold."""
    found, waiting = [], [model]
    while waiting:
        current = waiting.pop()
        if current in found:
            continue
        found.append(current)
        waiting += [m for field in current.model_fields.values() for m in specs_in(field.annotation)]
    return found


def specs_in(annotation):
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in specs_in(part)]


@pytest.mark.parametrize("job", list(JOB_KINDS.values()))
def test_every_field_is_frozen_strict_and_described(job):
    specs = all_specs(job)
    assert len(specs) > 8
    for spec in specs:
        assert issubclass(spec, Spec)
        assert spec.model_config["frozen"]
        assert spec.model_config["extra"] == "forbid"
        for name, field in spec.model_fields.items():
            assert field.description, f"{spec.__name__}.{name} has no docstring"


def test_the_schema_is_valid():
    VALIDATOR.check_schema(job_schema())


def test_ready_specs_exist():
    assert {"quickstart_sft.yaml", "quickstart_grpo.yaml"} <= {path.name for path in SPECS}


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.name)
def test_ready_specs_load_and_match_the_schema(path):
    job = load_job(path)
    assert job.run.name == path.stem
    schema = VALIDATOR(job_schema())
    schema.validate(read_yaml(path))
    schema.validate(resolved(job))


@pytest.mark.parametrize("sources", ["a.csv#3", ["a.csv#3", {"type": "hub", "id": "a/b"}], {"type": "file", "path": "a"}])
def test_the_schema_knows_the_short_forms_of_sources(sources):
    document = {
        "kind": "sft",
        "run": {"name": "try"},
        "model": {"path": "m"},
        "data": {"sources": sources},
        "steps": 1,
    }
    SftJob.model_validate(document)
    VALIDATOR(job_schema()).validate(document)


@pytest.mark.parametrize("changes", [{"stpes": 1}, {"steps": 0}, {"kind": "gpro"}, {"data": {"sources": [3]}}])
def test_the_schema_refuses_what_loading_refuses(changes):
    document = {"kind": "sft", "run": {"name": "try"}, "model": {"path": "m"}, "data": {"sources": "a"}, "steps": 1}
    assert VALIDATOR(job_schema()).is_valid(document)
    assert not VALIDATOR(job_schema()).is_valid({**document, **changes})


@pytest.mark.parametrize(
    ("fields", "bounds"),
    [
        ({}, (0.8, 1.2)),
        ({"epsilon_low": 0.1}, (0.9, 1.1)),
        ({"epsilon_low": 0.2, "epsilon_high": 0.28}, (0.8, 1.28)),
        ({"epsilon_high": 0.0}, (0.8, 1.0)),
    ],
)
def test_clip_range(fields, bounds):
    assert GrpoSpec(**fields).clip_range == pytest.approx(bounds)


@pytest.mark.parametrize(
    ("correction", "asked", "mode"),
    [
        ("none", "auto", "sample"),
        ("none", "all", "all"),
        ("none", "none", "none"),
        ("truncate", "auto", "all"),
        ("mask", "all", "all"),
    ],
)
def test_sampler_logprobs_are_asked_for_where_they_are_needed(correction, asked, mode):
    job = grpo_job(grpo={"sampler_correction": {"mode": correction}}, rollout={"sampler_logprobs": asked})
    assert job.logprob_mode == mode


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({}, True), ({"temperature": 0.5}, True), ({"top_p": 0.99}, False), ({"top_k": 20}, False)],
)
def test_which_settings_sample_the_models_distribution(fields, expected):
    assert RolloutSpec(**fields).samples_model_distribution is expected


@pytest.mark.parametrize(
    ("model", "label"),
    [
        (ModelSpec(path="org/name"), "org/name"),
        (ModelSpec(from_run="warm"), "run warm"),
        (ModelSpec(random=RandomModelSpec(config="qwen3-0.6b", characters="ab")), "qwen3-0.6b"),
        (ModelSpec(random=RandomModelSpec(config={"model_type": "qwen3"}, characters="ab")), "random qwen3"),
    ],
)
def test_model_labels(model, label):
    assert model.label == label


@pytest.mark.parametrize("name", ["a b", "../up", "", ".hidden", "a/b"])
def test_a_run_name_is_a_plain_folder_name(name):
    with pytest.raises(ValueError, match=r"run\.name"):
        grpo_job(run={"name": name})


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"loss_type": "sapo", "epsilon_high": 0.3}, "epsilon_high"),
        ({"loss_type": "cispo", "epsilon_low": 0.1}, "epsilon_low"),
        ({"loss_type": "cispo", "dual_clip": 3}, "dual_clip"),
        ({"sapo_tau_negative": 2}, "sapo_tau_negative"),
        ({"kl_estimator": "k1"}, "kl_estimator"),
        ({"kl_in": "reward"}, "kl_in"),
        ({"reference_every": 5}, "reference_every"),
        ({"dynamic_sampling": {}, "filter_zero_std": True}, "filter_zero_std"),
    ],
)
def test_a_setting_that_would_be_ignored_is_refused(fields, name):
    with pytest.raises(ValueError, match=f"{name} has no effect"):
        GrpoSpec(**fields)


@pytest.mark.parametrize(
    ("loss_type", "surrogate", "average"),
    [("dapo", "clip", "dapo"), ("dr_grpo", "clip", "dr_grpo"), ("cispo", "cispo", "dapo"), ("sapo", "sapo", "grpo")],
)
def test_what_a_loss_type_means(loss_type, surrogate, average):
    spec = GrpoSpec(loss_type=loss_type)
    assert (spec.surrogate, spec.average) == (surrogate, average)


@pytest.mark.parametrize("field", ["temperature", "top_p", "max_completion_tokens", "num_samples"])
def test_sampling_settings_of_the_evaluation_need_a_job_that_samples(field):
    base = {"kind": "sft", "run": {"name": "try"}, "model": {"path": "m"}, "data": {"sources": "a"}, "steps": 1}
    with pytest.raises(ValueError, match=rf"evaluate\.{field}: a job of kind sft does not sample"):
        SftJob.model_validate({**base, "evaluate": {field: 2 if field != "top_p" else 0.5}})


def test_the_longest_completion_may_be_that_of_the_evaluation():
    assert grpo_job(rollout={"max_completion_tokens": 8}).longest_completion == 8
    both = grpo_job(rollout={"max_completion_tokens": 8}, evaluate={"max_completion_tokens": 20})
    assert both.longest_completion == 20


def test_dynamic_sampling_multiplies_the_prompts_of_a_step():
    assert grpo_job(prompts_per_step=4).max_prompts_per_step == 4
    assert grpo_job(prompts_per_step=4, grpo={"dynamic_sampling": {"max_batches": 3}}).max_prompts_per_step == 12


def rollout_job(kind, **changes):
    fields = {
        "kind": kind,
        "run": {"name": "try"},
        "model": {"path": "m", "lora": {"rank": 4}},
        "data": {"sources": ["a.csv"]},
        "rewards": [{"type": "accuracy"}],
        "steps": 3,
    }
    return JOB_KINDS[kind].model_validate({**fields, **changes})


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("ppo", {"ppo": {"optimizer_steps_per_batch": 3}}, "prompts_per_step: 8 prompts cannot be split evenly"),
        ("ppo", {"ppo": {"critic_warmup_steps": 3}}, r"ppo\.critic_warmup_steps: the policy would never be trained"),
        ("ppo", {"critic": {"path": "a", "from_run": "b"}}, "set one of path and from_run"),
        ("ppo", {"critic": {"from_run": "b", "revision": "c"}}, "revision needs path"),
        ("ppo", {"rewards": []}, "rewards"),
        ("gkd", {}, "teacher"),
        ("gkd", {"teacher": {}}, "set exactly one of path and from_run"),
        ("gkd", {"teacher": {"path": "t"}, "rewards": [], "data": {"sources": ["a"], "held_out": 2}}, r"data\.held_out: without"),
        ("gkd", {"teacher": {"path": "t"}, "gkd": {"beta": 1.5}}, r"gkd\.beta"),
    ],
)
def test_what_ppo_and_gkd_refuse(kind, changes, message):
    with pytest.raises(ValueError, match=message):
        rollout_job(kind, **changes)


def test_a_critic_has_the_policys_settings_and_an_optimizer_of_its_own():
    job = rollout_job("ppo", critic={"from_run": "reward"}, learner={"num_ranks": 2, "optimizer": {"learning_rate": 1e-6}})
    assert (job.critic_learner.num_ranks, job.critic_learner.optimizer.learning_rate) == (2, 1e-5)
    critic = job.other_models["critic"]
    assert (critic.path, critic.from_run, critic.lora) == (None, "reward", job.model.lora)
    assert rollout_job("ppo").other_models == {}, "the policy's own model"


def test_a_teacher_is_a_whole_model_of_the_students_precision():
    job = rollout_job("gkd", teacher={"path": "t", "revision": "r"}, model={"from_run": "s", "dtype": "float32"}, rewards=[])
    teacher = job.other_models["teacher"]
    assert (teacher.path, teacher.revision, teacher.from_run, teacher.dtype, teacher.lora) == ("t", "r", None, "float32", None)


def test_streaming_is_for_sft_and_needs_steps():
    data = {"sources": ["a.csv"], "streaming": {}}
    with pytest.raises(ValueError, match=r"data\.streaming: is for kind sft; a job of kind grpo loads its rows first; remove it"):
        grpo_job(data=data)
    with pytest.raises(ValueError, match="steps: missing; the length of an epoch is unknown"):
        SftJob.model_validate({"kind": "sft", "run": {"name": "try"}, "model": {"path": "m"}, "data": data, "epochs": 1})
