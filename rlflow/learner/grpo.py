"""GRPO on a rank: what is known of a batch before its first step, its optimiser steps, and its KL from the reference."""

from collections.abc import Mapping, Sequence

from rlflow.algorithms.batch_plan import StepPlan
from rlflow.algorithms.losses import PolicyLoss
from rlflow.algorithms.policy_terms import KlEstimator, kl_estimate
from rlflow.learner.learner import Learner, Scores
from rlflow.learner.sequences import TrainSequence


def train_policy(
    learner: Learner,
    steps: Sequence[StepPlan],
    sequences: Mapping[int, TrainSequence],
    loss: PolicyLoss,
    learning_rates: Sequence[float],
    *,
    on_policy: bool,
) -> list[dict[str, float]]:
    """The optimiser steps of one batch (collective). Metrics of each, equal on every rank."""
    known = known_scores(learner, steps, sequences, loss, on_policy=on_policy)
    return [
        learner.train_step(step, sequences, loss, learning_rate=rate, known=known)
        for step, rate in zip(steps, learning_rates, strict=True)
    ]


def known_scores(
    learner: Learner,
    steps: Sequence[StepPlan],
    sequences: Mapping[int, TrainSequence],
    loss: PolicyLoss,
    *,
    on_policy: bool,
) -> dict[str, Scores]:
    """What `loss` compares all steps of a batch with, under the model before the first: old and reference log-probabilities, and
    the entropy mask (collective). `on_policy`: the batch has one step, whose own log-probabilities are the old ones.
    """
    known: dict[str, Scores] = {}
    if not on_policy:
        known["old_logprobs"] = learner.score_all(steps, sequences)
    if loss.kl_coefficient > 0:
        known["reference_logprobs"] = learner.score_all(steps, sequences, reference=True)
    if loss.top_entropy_quantile < 1:
        known["entropy_mask"] = learner.entropy_masks(steps, sequences, loss.top_entropy_quantile)
    return known


def sequence_kl(
    learner: Learner, steps: Sequence[StepPlan], sequences: Mapping[int, TrainSequence], estimator: KlEstimator
) -> dict[int, float]:
    """KL of the policy, as it is, from the reference for each of this rank's sequences, summed over its tokens (collective)."""
    policy = learner.score_all(steps, sequences)
    reference = learner.score_all(steps, sequences, reference=True)
    return {i: float(kl_estimate(policy[i], reference[i], estimator).sum()) for i in policy}
