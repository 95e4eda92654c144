"""The catalogue of metric names: what may stand in a row of `metrics.jsonl`, and what each name means.

The names are plain snake case, so that the same names, prefixed `rlflow_`, are legal in Prometheus.
"""

import math
import re
from collections.abc import Mapping
from numbers import Integral, Real

MetricRow = dict[str, int | float | None]

METRICS: dict[str, str] = {
    "step": "optimiser step, from 1; in batch inference rows that are done",
    "epoch": "passes over the training data, fractional",
    "time": "end of the step, seconds since 1970 (UTC)",
    "loss": "training loss, averaged over trained tokens",
    "grad_norm": "global gradient norm before clipping",
    "learning_rate": "learning rate of the step",
    "reward_mean": "mean total reward over the samples of the step",
    "reward_std": "standard deviation of the total reward over the samples of the step",
    "reward_failed_fraction": "samples whose reward failed / samples",
    "groups_zero_std_fraction": "groups whose rewards are all equal / groups",
    "groups_dropped_fraction": "groups left out by dynamic sampling / groups sampled",
    "sampling_rounds": "times that prompts were sampled for the step; above 1 dynamic sampling replaced groups",
    "completion_tokens_mean": "mean length of the completions, tokens",
    "completion_clipped_fraction": "completions that reached the length limit / completions",
    "entropy_mean": "mean entropy of the policy at the completion tokens, nats",
    "kl_mean": "mean KL divergence of the policy from the reference per completion token, nats",
    "divergence_mean": "mean divergence of student and teacher at the trained tokens, nats: gkd's loss",
    "teacher_rest_mean": "mean probability by the teacher of the tokens that are not among its gkd.top_k likeliest",
    "on_policy": "whether the student sampled what the step trained on: 1, or 0 for the rows' answers",
    "value_loss": "loss of the critic, averaged over completion tokens",
    "value_clipped_fraction": "completion tokens whose value was held by clipping / completion tokens",
    "value_grad_norm": "global gradient norm of the critic before clipping",
    "value_learning_rate": "learning rate of the critic in the step",
    "values_mean": "mean value by the critic at the completion tokens, before its training",
    "returns_mean": "mean return at the completion tokens: what the critic's values should be",
    "returns_std": "standard deviation of the returns at the completion tokens",
    "explained_variance": "1 - variance of (return - value) / variance of returns: 1 for a perfect critic, 0 for a constant",
    "advantage_mean": "mean advantage at the completion tokens, before whitening",
    "advantage_std": "standard deviation of the advantages at the completion tokens, before whitening",
    "ratio_clipped_fraction": "completion tokens whose probability ratio was clipped / completion tokens",
    "entropy_masked_fraction": "completion tokens whose policy term the entropy mask leaves out / completion tokens",
    "sampler_logprob_abs_diff_mean": "mean |log-probability by sampler - by learner| of sampled tokens, nats",
    "sampler_weight_mean": "mean importance weight that corrects sampler against learner",
    "weight_version": "version of the weights that sampled this step's completions",
    "router_aux_loss": "load-balancing loss of a mixture of experts, without its coefficient; top_k if balanced perfectly",
    "token_accuracy": "trained tokens whose most probable prediction is the target / trained tokens",
    "preference_accuracy": "pairs whose chosen answer has the higher reward / pairs (KTO: rewards with the sign of the label)",
    "reward_margin_mean": "mean reward of chosen answers - mean reward of rejected ones (implicit rewards, or a reward model's)",
    "rewards_chosen_mean": "mean reward of the chosen (desirable) answers",
    "rewards_rejected_mean": "mean reward of the rejected (undesirable) answers",
    "kto_kl": "KTO's reference point: estimated KL divergence of the policy from the reference, nats per answer",
    "learn_tokens": "tokens that the learner processed in the step, padding not counted",
    "tokens_per_second": "tokens of the step (prompts and completions) / step_seconds",
    "step_seconds": "wall-clock time of the step, seconds",
    "generate_seconds": "time in which completions were sampled, seconds",
    "reward_seconds": "time in which the loop waited for rewards alone, seconds",
    "teacher_seconds": "time in which a teacher on devices of its own answered, seconds",
    "learn_seconds": "time of the learner's passes and optimiser step, seconds",
    "hand_over_seconds": "time in which engines and learner changed places on the devices, without the sync, seconds",
    "sleep_seconds": "part of hand_over_seconds: engines free their memory, seconds",
    "reload_seconds": "part of hand_over_seconds: the learner's states come back to the device, seconds",
    "offload_seconds": "part of hand_over_seconds: the learner's states leave the device, seconds",
    "wake_seconds": "part of hand_over_seconds: engines take memory, seconds",
    "sync_seconds": "time in which weights moved from learner to sampler, seconds",
    "checkpoint_seconds": "time in which a checkpoint was written, seconds",
    "eval_seconds": "time of the evaluation that followed this step, seconds",
    "idle_seconds": "time of the driver covered by no phase, seconds",
    "eval_accuracy": "held-out prompts answered correctly, sampled / prompts; in SFT the mean probability of the exact answer, "
    "which is what sampling at temperature 1 is expected to give",
}
"""Every fixed name and its meaning with unit."""

PATTERNS: dict[str, str] = {
    r"reward_[a-z0-9_]+_failed_fraction": "samples of which one reward failed / samples",
    r"reward_[a-z0-9_]+_mean": "mean of one reward, unweighted, over the samples that have it",
    r"eval_[a-z0-9_]+": "a figure of the held-out evaluation",
    r"gpu_memory_gib_[a-z0-9_]+": "memory in use on the first GPU by all processes, at the end of a phase, GiB",
}
"""Families of names (full-match regular expressions) and their meaning."""


def describe(name: str) -> str | None:
    """One line about a metric; None for a name that is not in the catalogue."""
    if name in METRICS:
        return METRICS[name]
    return next((meaning for pattern, meaning in PATTERNS.items() if re.fullmatch(pattern, name)), None)


def validate(row: Mapping[str, object]) -> MetricRow:
    """The row as plain JSON numbers; NaN and infinities, which JSON lacks, become None.

    Raises `ValueError` on a name outside the catalogue, a value that is no number, or a missing step:
    all of them mistakes of the program, not of its user.
    """
    unknown = [name for name in row if describe(name) is None]
    if unknown:
        raise ValueError(f"not in the catalogue of rlflow.observe.metrics: {', '.join(sorted(unknown))}")
    if not isinstance(row.get("step"), Integral):
        raise ValueError(f"a row of metrics needs an integer step, got {row.get('step')!r}")
    return {name: _number(name, value) for name, value in row.items()}


def _number(name: str, value: object) -> int | float | None:
    if value is None:
        return None
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    raise ValueError(f"metric {name} must be a number or None, got {type(value).__name__}")
