import pytest
from pydantic import TypeAdapter, ValidationError

from rlflow.errors import SpecError
from rlflow.spec.rewards import (
    AccuracySpec,
    CosineSpec,
    FormatSpec,
    PluginSpec,
    RewardPoolSpec,
    RewardSpec,
    SoftOverlongSpec,
    default_name,
    resolve_names,
    with_token_limits,
)

REWARD_SPEC: TypeAdapter[RewardSpec] = TypeAdapter(RewardSpec)


def test_the_example_of_the_design_page():
    plugin = {"type": "plugin", "target": "my_rewards.py:short_answer", "weight": 0.2, "options": {}}
    accuracy, short = (REWARD_SPEC.validate_python(x) for x in ({"type": "accuracy", "weight": 1.0}, plugin))
    assert accuracy == AccuracySpec()
    assert isinstance(short, PluginSpec)
    assert (short.weight, short.timeout_s, default_name(short)) == (0.2, 30.0, "short_answer")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"type": "accurate"}, "does not match any of the expected tags"),
        ({"type": "accuracy", "weigth": 1.0}, "weigth"),
        ({"type": "format", "pattern": "("}, "not a regular expression"),
        ({"type": "soft_overlong"}, "cache_tokens"),
        ({"type": "soft_overlong", "cache_tokens": 5, "max_tokens": 5}, "must be smaller than max_tokens"),
        ({"type": "plugin", "target": "my_rewards.py"}, "path/file.py:name"),
        ({"type": "plugin", "target": ":name"}, "path/file.py:name"),
        ({"type": "accuracy", "name": "my reward"}, "name"),
        ({"type": "accuracy", "timeout_s": 0}, "timeout_s"),
    ],
)
def test_mistakes_name_the_field(fields, message):
    with pytest.raises(ValidationError, match=message):
        REWARD_SPEC.validate_python(fields)


@pytest.mark.parametrize(
    ("target", "name"),
    [("a/b.py:short", "short"), ("package.module:Outer.inner", "inner"), ("entry-point", "entry_point")],
)
def test_plugin_names(target, name):
    assert default_name(PluginSpec(target=target)) == name


def test_names_taken_twice():
    specs = [AccuracySpec(), FormatSpec(), AccuracySpec(column="other")]
    with pytest.raises(SpecError, match=r"rewards\[2\]: the name 'accuracy' is already taken by rewards\[0\]"):
        resolve_names(specs)
    assert resolve_names([*specs[:2], AccuracySpec(name="other")]) == ["accuracy", "format", "other"]


def test_token_limits_come_from_the_rollout():
    assert with_token_limits(CosineSpec(), 100) == CosineSpec(max_tokens=100)
    assert with_token_limits(CosineSpec(max_tokens=50), 100) == CosineSpec(max_tokens=50)
    assert with_token_limits(AccuracySpec(), 100) == AccuracySpec()
    with pytest.raises(SpecError, match=r"cache_tokens \(100\) must be smaller than max_completion_tokens \(100\)"):
        with_token_limits(SoftOverlongSpec(cache_tokens=100), 100)


def test_every_field_is_described():
    for spec in (AccuracySpec, FormatSpec, CosineSpec, SoftOverlongSpec, PluginSpec, RewardPoolSpec):
        assert all(field.description for field in spec.model_fields.values()), spec
