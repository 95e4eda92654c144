"""The kinds of `swift rlhf` that learn from preferences, with a critic, or from a teacher."""

from typing import Any

from rlflow.convert.devices import Devices
from rlflow.convert.draft import Draft
from rlflow.convert.flags import Settings
from rlflow.convert.grpo import convert_grpo
from rlflow.convert.rewards import convert_rewards
from rlflow.convert.rollout import convert_rollout
from rlflow.convert.sources import hold_nothing_out, holds_out
from rlflow.convert.training import convert_batch, rows_per_step
from rlflow.errors import UserError

KINDS = {
    "dpo": "dpo",
    "orpo": "dpo",
    "simpo": "dpo",
    "cpo": "dpo",
    "kto": "kto",
    "rm": "rm",
    "ppo": "ppo",
    "grpo": "grpo",
    "gkd": "gkd",
}
"""Kind of job by rlhf_type."""
_SMOOTHED = {"label_smoothing": "label_smoothing"}
_PAIR_LOSSES: dict[str, tuple[float | None, dict[str, str]]] = {
    "sigmoid": (0.1, _SMOOTHED),
    "robust": (0.1, _SMOOTHED),
    "hinge": (0.1, {}),
    "ipo": (0.1, {}),
    "apo_zero": (0.1, {}),
    "sft": (None, {}),
    "simpo": (2.0, {"simpo_gamma": "gamma"} | _SMOOTHED),
    "orpo": (0.1, {}),
    "cpo": (0.1, {"cpo_alpha": "alpha"} | _SMOOTHED),
}
"""Losses on pairs: ms-swift's default beta, and what else they take of its flags."""


def kind_of(settings: Settings) -> str:
    """Kind of job. Raises `UserError` if there is none."""
    if settings["rlhf_type"] not in KINDS:
        raise UserError(f"--rlhf_type {settings['rlhf_type']}: unknown; one of {', '.join(KINDS)}")
    return KINDS[settings["rlhf_type"]]


def convert_kind(settings: Settings, draft: Draft, devices: Devices) -> None:
    """The fields of the kind alone."""
    {"dpo": _dpo, "kto": _kto, "rm": _rm, "ppo": _ppo, "grpo": convert_grpo, "gkd": _gkd}[draft.kind](settings, draft, devices)


def _dpo(settings: Settings, draft: Draft, devices: Devices) -> None:
    convert_batch(settings, draft, devices)
    losses = [_pair_loss(name, settings) for name in _loss_names(settings)]
    weights = settings["loss_weights"] or []
    for loss, weight in zip(losses, weights, strict=False):
        loss["weight"] = weight
    if settings["rlhf_type"] == "simpo" and settings["cpo_alpha"]:
        losses.append({"type": "sft", "weight": settings["cpo_alpha"]})
        draft.note(
            "warning", "cpo_alpha", "ms-swift's SimPO adds cpo_alpha (1.0 by default) times the chosen answer's likelihood"
        )
    draft.set("dpo.losses", losses)
    if settings["rlhf_type"] == "dpo":
        draft.set("dpo.rpo_alpha", settings["rpo_alpha"])
    _reference(settings, draft)


def _loss_names(settings: Settings) -> list[str]:
    if settings["rlhf_type"] == "dpo":
        return settings["loss_type"] or ["sigmoid"]
    return [settings["rlhf_type"]]


def _pair_loss(name: str, settings: Settings) -> dict[str, Any]:
    if name not in _PAIR_LOSSES:
        raise UserError(f"--loss_type {name}: has no equivalent; known: {', '.join(_PAIR_LOSSES)}, or a loss of type plugin")
    beta, fields = _PAIR_LOSSES[name]
    loss: dict[str, Any] = {"type": name}
    if beta is not None:
        loss["beta"] = beta if settings["beta"] is None else settings["beta"]
    loss |= {field: settings[flag] for flag, field in fields.items()}
    return {field: value for field, value in loss.items() if (field, value) != ("label_smoothing", 0.0)}


def _reference(settings: Settings, draft: Draft) -> None:
    if settings["ref_model"] not in (None, settings["model"]):
        draft.note("no equivalent", settings.written["ref_model"], "the reference is the model at the start")


def _kto(settings: Settings, draft: Draft, devices: Devices) -> None:
    convert_batch(settings, draft, devices)
    if (settings["loss_type"] or ["kto"]) != ["kto"]:
        raise UserError(f"{settings.written['loss_type']}: the loss of kto is kto")
    draft.set("kto.beta", settings["beta"])
    draft.set("kto.desirable_weight", settings["desirable_weight"], given=settings.gives("desirable_weight"))
    draft.set("kto.undesirable_weight", settings["undesirable_weight"], given=settings.gives("undesirable_weight"))
    _reference(settings, draft)


def _rm(settings: Settings, draft: Draft, devices: Devices) -> None:
    convert_batch(settings, draft, devices)
    draft.set("rm.center_coefficient", settings["center_rewards_coefficient"])


def _ppo(settings: Settings, draft: Draft, devices: Devices) -> None:
    convert_rollout(settings, draft, devices, generations=1)
    draft.set("prompts_per_step", rows_per_step(settings, devices))
    convert_rewards(settings, draft)
    if settings["reward_model"]:
        draft.set("critic.path", settings["reward_model"][0])
    fields = {
        "kl_coefficient": "kl_coef",
        "kl_estimator": "kl_estimator",
        "epsilon": "cliprange",
        "value_clip_range": "cliprange_value",
        "gamma": "gamma",
        "gae_lambda": "lam",
        "whiten_rewards": "whiten_rewards",
        "missing_eos_penalty": "missing_eos_penalty",
        "optimizer_steps_per_batch": "num_mini_batches",
        "epochs_per_batch": "num_ppo_epochs",
    }
    for field, flag in fields.items():
        draft.set(f"ppo.{field}", settings[flag], given=settings.gives(flag))
    learner = draft.document["learner"]
    draft.set("critic.optimizer.learning_rate", learner["optimizer"]["learning_rate"], given=False)
    draft.set("critic.schedule", dict(learner["schedule"]))
    draft.note(
        "changed", settings.written.get("vf_coef", "vf_coef 0.1"), "the critic has an optimiser of its own; no weight is needed"
    )
    settings["vf_coef"]
    _reference(settings, draft)


def _gkd(settings: Settings, draft: Draft, devices: Devices) -> None:
    if settings["teacher_model"] is None:
        raise UserError("--teacher_model: missing")
    convert_rollout(settings, draft, devices, generations=1)
    draft.set("prompts_per_step", rows_per_step(settings, devices))
    draft.set("teacher.path", settings["teacher_model"])
    draft.set("teacher.revision", settings["teacher_model_revision"])
    draft.set("gkd.beta", settings["beta"])
    draft.set("gkd.on_policy_fraction", settings["lmbda"], given=settings.gives("lmbda"))
    top_k = settings["gkd_logits_topk"]
    if top_k is None:
        draft.note(
            "changed",
            "gkd_logits_topk",
            "ms-swift compares the whole vocabulary, rlflow the teacher's 64 likeliest tokens and "
            "all others as one; gkd.top_k: null compares all of them",
        )
    draft.set("gkd.top_k", top_k)
    if holds_out(draft):
        hold_nothing_out(draft)
        draft.note(
            "no equivalent",
            settings.written.get("val_dataset") or settings.written["split_dataset_ratio"],
            "gkd evaluates held-out rows by rewards; add rewards and data.held_out",
        )
