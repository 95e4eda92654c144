"""`swift rlhf --rlhf_type grpo`."""

from typing import Any

from rlflow.convert.devices import Devices
from rlflow.convert.draft import Draft
from rlflow.convert.flags import Settings
from rlflow.convert.rewards import convert_rewards
from rlflow.convert.rollout import convert_rollout
from rlflow.convert.sources import holds_out
from rlflow.convert.training import accumulation, rows_per_pass
from rlflow.errors import UserError

_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo")
_SCALES = {"true": "group", "false": "none", "group": "group", "batch": "batch", "none": "none"}
_ESTIMATORS = {"grpo": "grpo", "rloo": "rloo", "reinforce_plus_plus": "reinforce_plus_plus_baseline", "gdpo": "gdpo"}
"""ms-swift's REINFORCE++ takes the group's mean off, as the variant with baseline does."""
_CORRECTIONS = {"token_truncate": "truncate", "token_mask": "mask"}


def convert_grpo(settings: Settings, draft: Draft, devices: Devices) -> None:
    """Batch, sampling, rewards and objective."""
    convert_rollout(settings, draft, devices, settings["num_generations"])
    _batch(settings, draft, devices)
    convert_rewards(settings, draft)
    _loss(settings, draft)
    _advantages(settings, draft)
    _corrections(settings, draft)
    if holds_out(draft):
        draft.set("evaluate.num_samples", settings["num_generations_eval"])
    if settings["packing"]:
        draft.note("same", settings.written["packing"], "micro-batches are packed")


def _batch(settings: Settings, draft: Draft, devices: Devices) -> None:
    """ms-swift counts completions a process; rlflow prompts, over all."""
    accumulated = accumulation(settings, devices)
    micro = rows_per_pass(settings, devices)
    generations = settings["num_generations"]
    generated = settings["generation_batch_size"] or micro * (settings["steps_per_generation"] or accumulated)
    if generated % generations or generated % (micro * accumulated):
        raise UserError(
            f"--num_generations {generations}: the {generated} completions of a generation cannot be divided by it, or by the "
            f"{micro * accumulated} of an optimiser step"
        )
    prompts, steps = generated // generations, generated // (micro * accumulated)
    draft.set("prompts_per_step", prompts)
    if prompts % steps:
        draft.note(
            "changed",
            "steps_per_generation",
            f"an optimiser step takes whole groups: the batch of {prompts} prompts is one step here, {steps} there",
        )
        steps = 1
    draft.set("grpo.optimizer_steps_per_batch", steps, given=False)
    draft.set("grpo.epochs_per_batch", settings["num_iterations"], given=settings.gives("num_iterations"))
    if prompts < devices.gpus // settings["vllm_tensor_parallel_size"]:
        draft.note("warning", "batch size", _small_batch(settings, devices, accumulated, prompts))


def _small_batch(settings: Settings, devices: Devices, accumulated: int, prompts: int) -> str:
    micro, generations = settings["per_device_train_batch_size"], settings["num_generations"]
    engines = devices.gpus // settings["vllm_tensor_parallel_size"]
    return (
        f"ms-swift counts completions: {devices.ranks} processes x {micro} x {accumulated} accumulated are "
        f"{prompts * generations}, which at num_generations {generations} makes {prompts} prompt{'s' * (prompts > 1)} a step; so "
        f"{engines - prompts} of {engines} engines have nothing to sample: set prompts_per_step to {engines} or more"
    )


def _loss(settings: Settings, draft: Draft) -> None:
    loss = " ".join(settings["loss_type"] or ["grpo"])
    if loss not in _LOSSES:
        raise UserError(f"{settings.written['loss_type']}: has no equivalent; known: {', '.join(_LOSSES)}")
    draft.set("grpo.loss_type", loss)
    if loss == "bnpo":
        draft.note(
            "changed", settings.written["loss_type"], "averaged over the tokens of the optimiser step, not of a micro-batch"
        )
    draft.set("grpo.importance_sampling", settings["importance_sampling_level"], given=False)
    if loss not in ("cispo", "sapo"):
        draft.set("grpo.epsilon_low", settings["epsilon"], given=settings.gives("epsilon"))
        draft.set("grpo.epsilon_high", settings["epsilon_high"])
        draft.set("grpo.dual_clip", settings["delta"])
    elif loss == "cispo" and settings["epsilon_high"] is not None:
        draft.set("grpo.epsilon_high", settings["epsilon_high"] - 1)
        draft.note("changed", settings.written["epsilon_high"], "bounds the weight itself there; here 1 + epsilon_high does")
    elif loss == "sapo":
        draft.set("grpo.sapo_tau_positive", settings["tau_pos"], given=False)
        draft.set("grpo.sapo_tau_negative", settings["tau_neg"], given=False)
    draft.set("grpo.filter_overlong", settings["overlong_filter"], given=settings.gives("overlong_filter"))
    draft.set("grpo.top_entropy_quantile", settings["top_entropy_quantile"], given=settings.gives("top_entropy_quantile"))
    if settings["dynamic_sample"]:
        draft.set("grpo.dynamic_sampling", {"max_batches": 1 + settings["max_resample_times"]})
        draft.note("changed", settings.written["dynamic_sample"], "a step that is short of groups trains on those it has")


def _advantages(settings: Settings, draft: Draft) -> None:
    scale: Any = settings["scale_rewards"]
    estimator = settings["advantage_estimator"]
    if scale == "gdpo":
        estimator, scale = "gdpo", None
    if scale is not None and scale.lower() not in _SCALES:
        raise UserError(f"{settings.written['scale_rewards']}: is one of {', '.join(_SCALES)}, gdpo")
    if estimator not in _ESTIMATORS:
        raise UserError(f"{settings.written['advantage_estimator']}: known: {', '.join(_ESTIMATORS)}")
    draft.set("grpo.advantage_estimator", _ESTIMATORS[estimator], given=settings.gives("advantage_estimator"))
    draft.set("grpo.scale_rewards", None if scale is None else _SCALES[scale.lower()])
    beta = 0.04 if settings["beta"] is None else settings["beta"]
    draft.set("grpo.kl_coefficient", beta, given=settings.gives("beta"))
    in_reward = settings["kl_in_reward"]
    in_reward = estimator != "grpo" if in_reward is None else in_reward
    if beta and in_reward:
        draft.set("grpo.kl_in", "reward")
    if beta and not settings.gives("beta"):
        draft.note("warning", "beta", "is 0.04 by default in ms-swift: a reference is kept and scored; 0 leaves it out")
    if settings["sync_ref_model"]:
        draft.set("grpo.reference_every", settings["ref_model_sync_steps"])
        if settings["ref_model_mixup_alpha"] != 1:
            draft.note("changed", settings.written["sync_ref_model"], "the reference becomes the policy; ms-swift mixes the two")


def _corrections(settings: Settings, draft: Draft) -> None:
    mode = settings["rollout_importance_sampling_mode"]
    if mode is None:
        return
    if mode not in _CORRECTIONS:
        raise UserError(f"{settings.written['rollout_importance_sampling_mode']}: known: {', '.join(_CORRECTIONS)}")
    draft.set("grpo.sampler_correction", {"mode": _CORRECTIONS[mode], "cap": settings["rollout_importance_sampling_threshold"]})
