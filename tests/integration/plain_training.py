"""The reference the learner is compared with: transformers and torch alone, one sequence at a time, formulas spelled out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlflow.algorithms.losses import PolicyLoss
from rlflow.learner.sequences import TrainSequence
from rlflow.spec.learner import LearnerSpec
from tests.integration.stored_batch import MAX_COMPLETION_TOKENS, StoredBatch

TEMPERATURE = 0.9
"""Of sampling: the learner's logits are divided by it."""
CLIP, KL_COEFFICIENT, CORRECTION_CAP = (0.8, 1.2), 0.05, 2.0


@dataclass(frozen=True)
class Training:
    """What training on the stored batch gave."""

    metrics: list[dict[str, float]]
    """Of each optimiser step."""
    weights: dict[str, np.ndarray]
    """After the last."""


def load_plain(model: str) -> Any:
    """The model with transformers' own eager attention, in float32."""
    torch.set_num_threads(1)
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")


def plain_logits(model: Any, sequence: TrainSequence) -> Tensor:
    """Logits [n, V] that predict the n trained tokens, divided by the temperature."""
    ids = torch.from_numpy(sequence.token_ids)[None]
    return model(input_ids=ids).logits[0, sequence.trained - 1] / TEMPERATURE


def plain_logprobs(model: Any, sequence: TrainSequence) -> Tensor:
    """Log-probabilities [n] of the trained tokens."""
    return plain_scores(model, sequence)[0]


def plain_scores(model: Any, sequence: TrainSequence) -> tuple[Tensor, Tensor]:
    """Log-probabilities [n] of the trained tokens, and the entropies [n] of what they were drawn from."""
    targets = torch.from_numpy(sequence.token_ids[sequence.trained])
    logprobs = plain_logits(model, sequence).log_softmax(-1)
    return logprobs.gather(-1, targets[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)


def plain_training(model_path: str, batch: StoredBatch, loss_type: str, spec: LearnerSpec, loss: PolicyLoss) -> Training:
    """Train on the batch's optimiser steps; metrics are loss and gradient norm."""
    model = load_plain(model_path)
    with torch.no_grad():
        scores = {number: plain_scores(model, sequence) for number, sequence in batch.sequences.items()}
    optimizer = plain_adamw(model, spec)
    metrics = []
    steps = [sorted(step.token_weights) for step in batch.plan.plan.steps]
    for members in steps:
        weights = _token_weights(loss_type, members, batch, len(steps))
        threshold = np.quantile(np.concatenate([scores[number][1] for number in members]), 1 - loss.top_entropy_quantile)
        total = torch.tensor(0.0)
        for number in members:
            old, entropies = scores[number]
            token_losses = _token_losses(model, batch.sequences[number], old, entropies >= threshold, loss)
            total = total + weights[number] * token_losses.sum()
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), spec.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        metrics.append({"loss": total.item(), "grad_norm": norm.item()})
    return Training(metrics, {name: p.detach().numpy() for name, p in model.named_parameters()})


def _token_losses(model: Any, sequence: TrainSequence, old: Tensor, mask: Tensor, loss: PolicyLoss) -> Tensor:
    """The surrogate on the tokens in `mask`, KL penalty and entropy bonus, times the truncated importance weight of the
    sampler's tokens.

    The model starts as its own reference, so `old` is the reference's log-probability too.
    """
    logprobs, entropy = plain_scores(model, sequence)
    ratio = (logprobs - old).exp() if loss.importance_sampling == "token" else (logprobs - old).mean().exp().repeat(len(old))
    if loss.importance_sampling == "sequence_token":
        ratio = ratio.detach() * (logprobs - logprobs.detach()).exp()
    advantage = torch.tensor(sequence.advantage, dtype=torch.float32)
    gain = {"clip": _clipped_gain, "cispo": _cispo_gain, "sapo": _sapo_gain}[loss.surrogate](ratio, advantage, logprobs, loss)
    difference = old - logprobs
    kl = {"k1": -difference, "k2": difference**2 / 2, "k3": difference.exp() - difference - 1}[loss.kl_estimator]
    assert sequence.sampler_logprobs is not None
    sampler = torch.from_numpy(sequence.sampler_logprobs[sequence.trained])
    token_losses = loss.kl_coefficient * kl - gain * mask - loss.entropy_coefficient * entropy
    return token_losses * (old - sampler).exp().clamp(max=loss.correction_cap)


def _clipped_gain(ratio: Tensor, advantage: Tensor, _: Tensor, loss: PolicyLoss) -> Tensor:
    gain = torch.minimum(ratio * advantage, ratio.clamp(loss.clip_low, loss.clip_high) * advantage)
    return torch.maximum(gain, loss.dual_clip * advantage) if loss.dual_clip and advantage < 0 else gain


def _cispo_gain(ratio: Tensor, advantage: Tensor, logprobs: Tensor, loss: PolicyLoss) -> Tensor:
    return ratio.detach().clamp(max=loss.clip_high) * advantage * logprobs


def _sapo_gain(ratio: Tensor, advantage: Tensor, _: Tensor, loss: PolicyLoss) -> Tensor:
    tau = loss.tau_positive if advantage > 0 else loss.tau_negative
    return 4 / tau * advantage / (1 + (-tau * (ratio - 1)).exp())


def _token_weights(loss_type: str, members: Sequence[int], batch: StoredBatch, num_steps: int) -> dict[int, float]:
    lengths = {number: len(sequence.trained) for number, sequence in batch.sequences.items()}
    weight = {
        "grpo": lambda n: 1 / (len(members) * lengths[n]),
        "bnpo": lambda n: 1 / sum(lengths[m] for m in members),
        "dapo": lambda n: num_steps / sum(lengths.values()),
        "dr_grpo": lambda n: 1 / (len(members) * MAX_COMPLETION_TOKENS),
    }[loss_type]
    return {number: weight(number) for number in members}


@torch.no_grad()
def plain_evaluation(plain: Any, rows: Iterable[TrainSequence]) -> dict[str, float]:
    """Metrics of held-out conversations, at temperature 1; accuracies count trained tokens alike, whatever their weights."""
    loss, weight, right, whole = 0.0, 0.0, [], []
    for row in rows:
        if not len(row.trained):
            continue
        logprobs = plain(input_ids=torch.tensor(row.token_ids)[None]).logits[0].log_softmax(-1)
        answer = []
        for place in row.trained:
            token = int(row.token_ids[place])
            answer.append(logprobs[place - 1, token].item())
            loss, weight = loss - float(row.loss_weights[place]) * answer[-1], weight + float(row.loss_weights[place])
            right.append(int(logprobs[place - 1].argmax()) == token)
        whole.append(np.exp(sum(answer)))
    return {"loss": loss / weight, "token_accuracy": float(np.mean(right)), "accuracy": float(np.mean(whole))}


def plain_adamw(model: Any, spec: LearnerSpec, rate: float | None = None) -> torch.optim.Optimizer:
    """Weight decay on matrices only; at the spec's learning rate, or another."""
    settings = spec.optimizer
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate or settings.learning_rate, betas=settings.betas, eps=settings.epsilon)
