"""Specs of preference jobs: defaults, what is refused, the objective they become, and problems that the plan finds."""

import pytest

from rlflow.algorithms.kto_loss import KtoLoss
from rlflow.algorithms.pair_losses import PairObjective, Sft, Sigmoid, Simpo
from rlflow.algorithms.reward_model_loss import RewardModelLoss
from rlflow.errors import SpecError
from rlflow.jobs.plan import Devices, plan_job
from rlflow.loops.preference import preference_objective
from rlflow.spec.load import parse_job


def job(kind, **changes):
    document = {"kind": kind, "run": {"name": "try"}, "model": {"path": "m"}, "data": {"sources": "a.csv"}, "steps": 1}
    return parse_job({**document, **changes})


def test_defaults():
    assert preference_objective(job("dpo")) == PairObjective(((Sigmoid(0.1, 0.0), 1.0),))
    assert preference_objective(job("kto")) == KtoLoss(0.1, 1.0, 1.0)
    assert preference_objective(job("rm")) == RewardModelLoss(0.0)
    assert [job(kind).reference for kind in ("dpo", "kto", "rm")] == ["swapped", "swapped", "none"]
    assert job("dpo", batch_size=7).rows_per_step == 7


def test_several_losses_and_rpo():
    dpo = {"losses": [{"type": "simpo", "weight": 0.5, "gamma": 0.3}, {"type": "sigmoid", "beta": 0.2}], "rpo_alpha": 0.7}
    objective = preference_objective(job("dpo", dpo=dpo))
    assert objective == PairObjective(((Simpo(2.0, 0.3, 0.0), 0.5), (Sigmoid(0.2, 0.0), 1.0), (Sft(), 0.7)))


@pytest.mark.parametrize("kind", ["simpo", "orpo", "cpo", "sft"])
def test_losses_without_reference_keep_none(kind):
    assert job("dpo", dpo={"losses": [{"type": kind}]}).reference == "none"
    assert job("dpo", dpo={"losses": [{"type": kind}, {"type": "ipo"}]}).reference == "swapped"


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("dpo", {"dpo": {"losses": [{"type": "sigmod"}]}}, r"dpo\.losses"),
        ("dpo", {"dpo": {"losses": [{"type": "hinge", "label_smoothing": 0.1}]}}, "label_smoothing"),
        ("dpo", {"dpo": {"losses": [{"type": "robust", "label_smoothing": 0.5}]}}, "label_smoothing"),
        ("dpo", {"dpo": {"losses": []}}, r"dpo\.losses"),
        ("dpo", {"dpo": {"losses": [{"type": "plugin", "target": "file.py"}]}}, "module:function"),
        ("dpo", {"dpo": {"losses": [{"type": "simpo"}], "reference": "stored"}}, "none of the losses"),
        ("kto", {"kto": {"beta": 0}}, r"kto\.beta"),
        ("rm", {"data": {"sources": "a.csv", "loss": "all"}}, r"data\.loss"),
        ("rm", {"dpo": {}}, "dpo: unknown field"),
        ("dpo", {"data": {"sources": "a.csv", "overlong": "split"}}, r"data\.overlong: split is for kind sft"),
        ("kto", {"data": {"sources": "a.csv", "loss_weights": ["react"]}}, r"data\.loss_weights"),
    ],
)
def test_mistakes_name_the_field(kind, changes, message):
    with pytest.raises(SpecError, match=message):
        job(kind, **changes)


def problems(planned_job, devices):
    return "\n".join(plan_job(planned_job, devices).problems)


CPU, GPU = Devices("cpu", 4, 16.0), Devices("gpu", 1, 80.0)


def test_a_loss_that_cannot_be_imported_is_found_by_the_plan():
    def planned(target):
        return problems(job("dpo", dpo={"losses": [{"type": "sft"}, {"type": "plugin", "target": target}]}), CPU)

    assert "dpo.losses[1].target: cannot import no_such_module:f: ModuleNotFoundError" in planned("no_such_module:f")
    assert "dpo.losses[1].target: cannot import math:no_such: AttributeError" in planned("math:no_such")
    assert "dpo.losses" not in planned("math:sqrt")


def test_a_reward_model_on_gpus_is_refused_by_the_plan():
    rewards = [{"type": "accuracy"}, {"type": "model", "path": "somewhere"}]
    grpo = job("grpo", rewards=rewards)
    assert "rewards[1]: a reward of type model has no share of a GPU" in problems(grpo, GPU)
    assert "rewards[1]" not in problems(grpo, CPU)
