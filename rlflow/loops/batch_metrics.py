"""What a sampled batch says about the run: metrics, failures, and rows for the log."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from rlflow.algorithms.advantages import has_spread
from rlflow.algorithms.policy_batch import PolicyBatch
from rlflow.cluster.handles import GroupHandle, RowOf
from rlflow.errors import RewardError

_SHOWN_FAILURES = 3


def sampling_metrics(groups: Sequence[GroupHandle], batch: PolicyBatch) -> dict[str, float]:
    """Rewards, lengths and filters of a training batch."""
    totals = [score.total for group in groups for score in group.scores if score.total is not None]
    lengths = [count for group in groups for count in group.summary.completion_tokens]
    reasons = [reason for group in groups for reason in group.summary.finish_reasons]
    flat = [not has_spread([score.total for score in group.scores]) for group in groups]
    return {
        **({"reward_mean": statistics.fmean(totals), "reward_std": statistics.pstdev(totals)} if totals else {}),
        **(
            {"groups_zero_std_fraction": statistics.fmean(flat)}
            if any(score.by_name for g in groups for score in g.scores)
            else {}
        ),
        **{f"reward_{name}_mean": mean for name, mean in _reward_means(groups).items()},
        "reward_failed_fraction": _failed_fraction(groups),
        **_failed_fractions(groups),
        "groups_dropped_fraction": batch.groups_dropped_fraction,
        "completion_tokens_mean": statistics.fmean(lengths),
        "completion_clipped_fraction": statistics.fmean(reason == "length" for reason in reasons),
    }


def evaluation_metrics(groups: Sequence[GroupHandle]) -> dict[str, float]:
    """`eval_<reward>` for every reward, and `eval_reward` for their weighted sum: means over all completions (mean@k).

    With k completions a prompt also `eval_<reward>_pass_at_<k>`: the share of prompts of which one has that reward at 1 or more.
    """
    totals = [score.total for group in groups for score in group.scores if score.total is not None]
    means = {f"eval_{name}": mean for name, mean in _reward_means(groups).items()}
    return {**({"eval_reward": statistics.fmean(totals)} if totals else {}), **means, **_pass_rates(groups)}


def _pass_rates(groups: Sequence[GroupHandle]) -> dict[str, float]:
    num_samples = max((len(group.scores) for group in groups), default=0)
    if num_samples < 2:
        return {}
    best: dict[str, list[float]] = {}
    for group in groups:
        for name, values in _reward_values([group]).items():
            best.setdefault(name, []).append(max(values))
    return {f"eval_{name}_pass_at_{num_samples}": statistics.fmean(b >= 1 for b in values) for name, values in best.items()}


def check_failures(groups: Sequence[GroupHandle], threshold: float, note: Callable[[str], None]) -> None:
    """Show failed rewards; raise `RewardError` with the first tracebacks if too many failed."""
    failures = [failure for group in groups for score in group.scores for failure in score.failures]
    if not failures:
        return
    fraction = _failed_fraction(groups)
    note(f"{fraction:.1%} of rewards failed, e.g. {failures[0].reward}: {failures[0].message}")
    if fraction > threshold:
        shown = "\n".join(f"{f.reward}: {f.message}\n{f.traceback}".rstrip() for f in failures[:_SHOWN_FAILURES])
        raise RewardError(
            f"rewards failed for {fraction:.1%} of the samples, more than reward_pool.failure_threshold = {threshold:.1%}; "
            f"the first failures:\n{shown}"
        )


def completion_rows(
    groups: Sequence[GroupHandle], batch: PolicyBatch, texts: Sequence[Sequence[str]], row_of: RowOf
) -> list[dict[str, Any]]:
    """Rows of `completions/step-….jsonl`."""
    return [
        {
            "prompt": row_of(group.summary.prompt_id).text,
            "completion": texts[g][k],
            "rewards": score.by_name,
            "reward": score.total,
            "advantage": batch.advantages[g][k],
            "finish_reason": group.summary.finish_reasons[k],
            "completion_tokens": group.summary.completion_tokens[k],
            "prompt_id": group.summary.prompt_id,
            "sample_index": k,
            "weight_version": group.summary.weight_version,
            "attempt": group.summary.attempt,
            **({"error": score.failures[0].message} if score.failures else {}),
        }
        for g, group in enumerate(groups)
        for k, score in enumerate(group.scores)
    ]


def _reward_means(groups: Sequence[GroupHandle]) -> dict[str, float]:
    return {name: statistics.fmean(known) for name, known in _reward_values(groups).items()}


def _reward_values(groups: Sequence[GroupHandle]) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    for group in groups:
        for score in group.scores:
            for name, value in score.by_name.items():
                if value is not None:
                    values.setdefault(name.lower(), []).append(value)
    return values


def _failed_fractions(groups: Sequence[GroupHandle]) -> dict[str, float]:
    """Of each reward: a judge's answers without a number are among its failures."""
    scores = [score for group in groups for score in group.scores]
    failed = [{failure.reward for failure in score.failures} for score in scores]
    names = dict.fromkeys(name for score, each in zip(scores, failed, strict=True) for name in (*score.by_name, *sorted(each)))
    return {f"reward_{name.lower()}_failed_fraction": statistics.fmean(name in each for each in failed) for name in names}


def _failed_fraction(groups: Sequence[GroupHandle]) -> float:
    return statistics.fmean(bool(score.failures) for group in groups for score in group.scores)
