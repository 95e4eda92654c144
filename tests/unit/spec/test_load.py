"""What a user sees of specs that are wrong: one line a problem, each with the path of its field."""

import copy
import json

import pytest
import yaml

from rlflow.errors import SpecError
from rlflow.spec.load import load_job, parse_job, read_yaml, resolved, spec_hash

GRPO = {
    "kind": "grpo",
    "run": {"name": "try"},
    "model": {"path": "some/model"},
    "data": {"sources": ["rows.jsonl#5", {"type": "reasoning_gym", "task": "chain_sum"}], "held_out": 3},
    "rewards": [{"type": "accuracy"}, {"type": "format", "weight": 0.2}],
    "steps": 3,
}
SFT = {"kind": "sft", "run": {"name": "try"}, "model": {"path": "m"}, "data": {"sources": ["a.csv"]}, "epochs": 2}
REWARD_TYPES = "accuracy, format, cosine, soft_overlong, repetition, plugin, model, judge"


def spec(base=GRPO, **changes):
    return {**copy.deepcopy(base), **changes}


def complaints(document, overrides=()):
    with pytest.raises(SpecError) as caught:
        parse_job(document, overrides, origin="job.yaml")
    lines = str(caught.value).split("\n")
    assert all(line.startswith("job.yaml: ") for line in lines)
    return [line.removeprefix("job.yaml: ") for line in lines]


def load(tmp_path, text, overrides=()):
    path = tmp_path / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return load_job(path, overrides)


# ---- fields


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"stpes": 5}, "stpes: unknown field; did you mean steps?"),
        (
            {"learner": {"optimizer": {"learning_rat": 1}}},
            "learner.optimizer.learning_rat: unknown field; did you mean learning_rate?",
        ),
        ({"learner": {"optimizer": {"lr": 1e-6}}}, "learner.optimizer.lr: unknown field; did you mean learning_rate?"),
        ({"grpo": {"los_type": 1}}, "grpo.los_type: unknown field; did you mean loss_type?"),
        ({"grpo": {"qqqqqq": 1}}, "grpo.qqqqqq: unknown field"),
        (
            {"rewards": [{"type": "accuracy"}, {"type": "cosine", "max_tokns": 4}]},
            "rewards[1].max_tokns: unknown field; did you mean max_tokens?",
        ),
        (
            {"rewards": [{"type": "accurcy"}]},
            f"rewards[0].type: unknown: 'accurcy'; did you mean accuracy?; one of {REWARD_TYPES}",
        ),
        (
            {"rewards": [{"weight": 1}]},
            f"rewards[0].type: missing; one of {REWARD_TYPES}",
        ),
        ({"rewards": [{"type": "soft_overlong"}]}, "rewards[0].cache_tokens: missing"),
        (
            {"data": {"sources": [{"type": "hub", "id": "a/b", "splt": "x"}]}},
            "data.sources[0].splt: unknown field; did you mean split?",
        ),
        (
            {"model": {"random": {"config": "tiny", "characters": "ab", "confg": 1}}},
            "model.random.confg: unknown field; did you mean config?",
        ),
        ({"data": {"sources": {"type": "file"}}}, "data.sources.path: missing"),
        ({"run": {}}, "run.name: missing"),
        (
            {"grpo": {"loss_type": "ppo"}},
            "grpo.loss_type: Input should be 'grpo', 'bnpo', 'dr_grpo', 'dapo', 'cispo' or 'sapo' (got 'ppo')",
        ),
        ({"learner": {"zero_stage": 4}}, "learner.zero_stage: Input should be 'auto', 0, 1, 2 or 3 (got 4)"),
        ({"steps": 0}, "steps: Input should be greater than or equal to 1 (got 0)"),
        ({"rewards": []}, "rewards: Tuple should have at least 1 item after validation, not 0 (got [])"),
        ({"data": {"sources": ["rows.jsonl#0"]}}, "data.sources[0]: Input should be greater than or equal to 1 (got 0)"),
        (
            {"rewards": [{"type": "accuracy", "weight": float("nan")}]},
            "rewards[0].weight: Input should be a finite number (got nan)",
        ),
    ],
)
def test_a_mistake_is_named_by_the_path_the_user_wrote(changes, line):
    assert complaints(spec(**changes)) == [line]


def test_all_mistakes_are_reported_at_once():
    lines = complaints(spec(steps=-1, learner={"num_ranks": 0, "packin": True}, rewards=[{"type": "accuracy", "colum": "x"}]))
    assert sorted(line.partition(":")[0] for line in lines) == [
        "learner.num_ranks",
        "learner.packin",
        "rewards[0].colum",
        "steps",
    ]


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("gpro", "kind: unknown: 'gpro'; did you mean grpo?; one of sft, grpo"),
        (None, "kind: missing; one of sft, grpo"),
        (["sft"], "kind: unknown: ['sft']"),
    ],
)
def test_unknown_kinds(kind, line):
    [shown] = complaints(spec(kind=kind))
    assert shown.startswith(line)


def test_fields_of_another_kind_are_unknown():
    assert complaints(spec(SFT, rollout={})) == ["rollout: unknown field"]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model": {"path": "a", "from_run": "b"}}, "model: set exactly one of path, from_run and random"),
        ({"model": {}}, "model: set exactly one of path, from_run and random"),
        ({"model": {"from_run": "b", "revision": "x"}}, "model: revision needs path"),
        ({"model": {"random": {"config": "tiny"}}}, "model.random: set exactly one of characters and tokenizer"),
        ({"epochs": 1}, "set exactly one of steps and epochs"),
        ({"steps": None}, "set exactly one of steps and epochs"),
        (
            {"rewards": [{"type": "accuracy"}, {"type": "accuracy"}]},
            "rewards[1]: the name 'accuracy' is already taken by rewards[0]; give one of them another `name`",
        ),
        (
            {"learner": {"optimizer": {"learning_rate": 1e-6}, "schedule": {"type": "linear", "min_learning_rate": 1e-5}}},
            "learner: schedule.min_learning_rate is above optimizer.learning_rate",
        ),
        (
            {"learner": {"schedule": {"min_learning_rate": 1e-9}}},
            "learner.schedule: min_learning_rate: a constant schedule does not decay; set type to linear or cosine",
        ),
        (
            {"learner": {"schedule": {"warmup_steps": 3, "warmup_fraction": 0.1}}},
            "learner.schedule: set only one of warmup_steps and warmup_fraction",
        ),
        (
            {"rewards": [{"type": "accuracy", "name": "reward"}]},
            "rewards[0]: the name 'reward' is that of the weighted sum; give it another `name`",
        ),
        (
            {"prompts_per_step": 8, "grpo": {"optimizer_steps_per_batch": 3}},
            "prompts_per_step: 8 prompts cannot be split evenly into grpo.optimizer_steps_per_batch = 3 optimiser steps",
        ),
    ],
)
def test_fields_that_do_not_go_together(changes, line):
    assert complaints(spec(**changes)) == [line]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"rollout": {"num_generations": 1}}, "rollout.num_generations:"),
        ({"rollout": {"num_generations": 1}, "grpo": {"scale_rewards": "batch"}}, "rollout.num_generations:"),
        (
            {
                "rollout": {"num_generations": 1},
                "grpo": {"advantage_estimator": "reinforce_plus_plus", "filter_zero_std": True},
            },
            "grpo.filter_zero_std:",
        ),
        ({"grpo": {"advantage_estimator": "gdpo", "scale_rewards": "group"}}, "grpo: scale_rewards:"),
        ({"grpo": {"advantage_estimator": "gdpo", "kl_coefficient": 0.1, "kl_in": "reward"}}, "grpo: kl_in:"),
        (
            {"rollout": {"num_generations": 1}, "grpo": {"advantage_estimator": "reinforce_plus_plus", "dynamic_sampling": {}}},
            "grpo.dynamic_sampling:",
        ),
        (
            {"model": {"path": "m", "lora": {}}, "grpo": {"kl_coefficient": 0.1, "reference_every": 5}},
            "grpo.reference_every:",
        ),
        ({"evaluate": {"temperature": 0, "num_samples": 2}}, "evaluate.num_samples:"),
        ({"run": {"name": "try", "keep_best": {"metric": "loss"}}}, "run.keep_best.metric:"),
        (
            {"run": {"name": "try", "keep_best": {"metric": "eval_loss"}}, "data": {"sources": ["a.csv"]}},
            "run.keep_best: needs held-out rows",
        ),
        (
            {"run": {"name": "try", "early_stopping": {"metric": "eval_loss", "mode": "min"}}},
            "run.early_stopping: needs evaluations during the run; set evaluate.every",
        ),
        ({"grpo": {"dual_clip": 3, "loss_type": "sapo"}}, "grpo: dual_clip has no effect"),
        ({"grpo": {"sampler_correction": {"mode": "mask"}}, "rollout": {"top_p": 0.9}}, "grpo.sampler_correction.mode:"),
        ({"grpo": {"sampler_correction": {"mode": "mask"}}, "rollout": {"top_k": 5}}, "grpo.sampler_correction.mode:"),
        (
            {"grpo": {"sampler_correction": {"mode": "mask"}}, "rollout": {"sampler_logprobs": "none"}},
            "rollout.sampler_logprobs:",
        ),
    ],
)
def test_settings_the_objective_rules_out(changes, field):
    [line] = complaints(spec(**changes))
    assert line.startswith(field)


def test_one_completion_a_prompt_is_fine_with_a_baseline_of_the_batch():
    job = parse_job(spec(rollout={"num_generations": 1}, grpo={"advantage_estimator": "reinforce_plus_plus"}))
    assert job.rollout.num_generations == 1


def test_a_spec_cannot_be_changed():
    job = parse_job(spec())
    with pytest.raises(ValueError, match="frozen"):
        job.steps = 4
    with pytest.raises(ValueError, match="frozen"):
        job.learner.optimizer.learning_rate = 1.0


# ---- YAML


HEAD = "kind: sft\nrun: {name: try}\nmodel: {path: m}\ndata: {sources: a.csv}\n"


def test_numbers_people_write(tmp_path):
    text = HEAD + "epochs: 1e1\nlearner: {optimizer: {learning_rate: 1e-4, epsilon: 1E-9, weight_decay: 0}}\n"
    job = load(tmp_path, text)
    assert job.epochs == 10
    assert (job.learner.optimizer.learning_rate, job.learner.optimizer.epsilon) == (1e-4, 1e-9)
    assert yaml.safe_load("1e-4") == "1e-4", "PyYAML's own loader is left as it is"


def test_a_date_is_a_name(tmp_path):
    job = load(tmp_path, HEAD.replace("try", "2026-01-31") + "steps: 1\n")
    assert job.run.name == "2026-01-31"


def test_merge_keys_give_defaults(tmp_path):
    text = HEAD + "steps: 1\nlearner: {<<: {num_ranks: 3, packing: true}, packing: false}\n"
    job = load(tmp_path, text)
    assert (job.learner.num_ranks, job.learner.packing) == (3, False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "steps: 1\nsteps: 2\n", "line 6, column 1: not valid YAML: steps is given twice"),
        (HEAD + "learner: {packing: true, packing: false}\n", "packing is given twice"),
        ("run: {name: {{ name }}}\n", "not valid YAML.*unhashable key"),
        ("run: [1\n", "not valid YAML"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("- kind: sft\n", "a spec is a mapping of fields .*, this is a list"),
        ("", "the file is empty"),
    ],
)
def test_malformed_yaml(tmp_path, text, message):
    with pytest.raises(SpecError, match=message) as caught:
        load(tmp_path, text)
    assert str(tmp_path / "job.yaml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_files(tmp_path):
    with pytest.raises(SpecError, match=r"absent\.yaml: cannot be read: No such file"):
        read_yaml(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match=r"binary\.yaml: cannot be read"):
        read_yaml(tmp_path / "binary.yaml")


# ---- overrides


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("steps=7", lambda job: job.steps == 7),
        ("run.name=other", lambda job: job.run.name == "other"),
        ("learner.optimizer.learning_rate=1e-4", lambda job: job.learner.optimizer.learning_rate == 1e-4),
        ("learner.schedule.warmup_steps=null", lambda job: job.learner.schedule.warmup_steps is None),
        ("rewards.1.weight=0.5", lambda job: job.rewards[1].weight == 0.5),
        ("rewards.0={type: format}", lambda job: job.rewards[0].type == "format"),
        ("data.sources.1.size=9", lambda job: job.data.sources[1].size == 9),
        ("data.sources=other.csv#3", lambda job: job.data.sources[0].sample == 3),
        ("rollout.stop=['a=b', c]", lambda job: job.rollout.stop == ("a=b", "c")),
        ("rollout.engine.max_num_batched_tokens=64", lambda job: job.rollout.engine == {"max_num_batched_tokens": 64}),
        ("run.name=2026-01-31", lambda job: job.run.name == "2026-01-31"),
    ],
)
def test_overrides(override, read):
    document = spec(rewards=[{"type": "accuracy"}, {"type": "format", "name": "shape"}])
    before = copy.deepcopy(document)
    assert read(parse_job(document, [override]))
    assert document == before, "the caller's document is left as it is"


def test_later_overrides_win():
    assert parse_job(spec(), ["steps=7", "steps=8"]).steps == 8


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps", "override 'steps': write key=value"),
        ("=3", "override '=3': write key=value"),
        ("run..name=3", "write key=value"),
        ("steps.x=1", "steps has no field or item x"),
        ("run.name.x=1", "run.name has no field or item x"),
        ("run.name.x.y=1", "override run.name.x: there is no such field or item"),
        ("rewards.2={type: format}", "rewards has no field or item 2"),
        ("rewards.2.weight=1", "override rewards.2: there is no such field or item"),
        ("rewards.weight=1", "rewards has no field or item weight"),
        ("steps=[1,", r"override 'steps=\[1,': not valid YAML"),
    ],
)
def test_bad_overrides(override, message):
    with pytest.raises(SpecError, match=message) as caught:
        parse_job(spec(), [override])
    assert "\n" not in str(caught.value)


def test_an_override_with_an_unknown_field_is_a_mistake_like_any_other():
    assert complaints(spec(), ["learner.num_rank=2"]) == ["learner.num_rank: unknown field; did you mean num_ranks?"]


# ---- the resolved spec


@pytest.mark.parametrize("document", [GRPO, SFT])
def test_the_resolved_spec_reads_back_as_the_same_job(document):
    job = parse_job(document)
    stored = json.loads(json.dumps(resolved(job)))
    again = parse_job(stored)
    assert again == job
    assert resolved(again) == stored
    assert spec_hash(again) == spec_hash(job)


def test_the_hash_tells_specs_apart_and_not_how_they_were_written():
    job = parse_job(spec())
    assert spec_hash(job) == spec_hash(parse_job(spec(learner={}, epochs=None)))
    assert spec_hash(job) == spec_hash(parse_job(dict(reversed(spec().items()))))
    assert spec_hash(job) != spec_hash(parse_job(spec(), ["run.seed=1"]))
    assert len(spec_hash(job)) == 12


def test_resolved_holds_every_default():
    data = resolved(parse_job(spec()))
    assert data["learner"]["optimizer"] == {
        "learning_rate": 1e-6,
        "betas": [0.9, 0.95],
        "epsilon": 1e-8,
        "weight_decay": 0.1,
    }
    assert data["data"]["sources"][0] == {"type": "file", "path": "rows.jsonl", "sample": 5, "columns": {}, "held_out": None}


def test_a_base_in_4_bits_is_not_partitioned():
    with pytest.raises(SpecError, match=r"learner\.zero_stage: 3 cannot partition the 4-bit weights .* use auto, 1 or 2"):
        parse_job(spec(model={"path": "m", "lora": {"quantization": "nf4"}}, learner={"zero_stage": 3}))


def test_contradictions_are_reported_together():
    changes = {"grpo": {"optimizer_steps_per_batch": 3}, "learner": {"zero_stage": 0}, "epochs": 1}
    with pytest.raises(SpecError) as caught:
        parse_job(spec(**changes), origin="a.yaml")
    assert str(caught.value).splitlines() == [
        "a.yaml: set exactly one of steps and epochs",
        "a.yaml: learner.zero_stage: 0 needs model.dtype float32, not bfloat16; use 1 or higher",
        "a.yaml: prompts_per_step: 8 prompts cannot be split evenly into grpo.optimizer_steps_per_batch = 3 optimiser steps",
    ]
