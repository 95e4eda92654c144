"""The reference the learner is compared with: transformers and torch alone, one sequence at a time, formulas spelled out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

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
    targets = torch.from_numpy(sequence.token_ids[sequence.trained])
    return plain_logits(model, sequence).log_softmax(-1).gather(-1, targets[:, None])[:, 0]


def plain_training(model_path: str, batch: StoredBatch, loss_type: str, spec: LearnerSpec) -> Training:
    """Train on the batch's optimiser steps; metrics are loss and gradient norm."""
    model = load_plain(model_path)
    old = {}
    with torch.no_grad():
        for number, sequence in batch.sequences.items():
            old[number] = plain_logprobs(model, sequence)
    optimizer = _adamw(model, spec)
    metrics = []
    steps = [sorted(step.token_weights) for step in batch.plan.plan.steps]
    for members in steps:
        weights = _token_weights(loss_type, members, batch, len(steps))
        loss = torch.tensor(0.0)
        for number in members:
            token_losses = _token_losses(model, batch.sequences[number], old[number])
            loss = loss + weights[number] * token_losses.sum()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), spec.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        metrics.append({"loss": loss.item(), "grad_norm": norm.item()})
    return Training(metrics, {name: p.detach().numpy() for name, p in model.named_parameters()})


def _token_losses(model: Any, sequence: TrainSequence, old: Tensor) -> Tensor:
    """PPO's clipped objective and the k3 penalty, times the truncated importance weight of the sampler's tokens.

    The model starts as its own reference, so `old` is the reference's log-probability too.
    """
    logprobs = plain_logprobs(model, sequence)
    ratio = (logprobs - old).exp()
    gain = torch.minimum(ratio * sequence.advantage, ratio.clamp(*CLIP) * sequence.advantage)
    kl = (old - logprobs).exp() - (old - logprobs) - 1
    assert sequence.sampler_logprobs is not None
    sampler = torch.from_numpy(sequence.sampler_logprobs[sequence.trained])
    return (KL_COEFFICIENT * kl - gain) * (old - sampler).exp().clamp(max=CORRECTION_CAP)


def _token_weights(loss_type: str, members: Sequence[int], batch: StoredBatch, num_steps: int) -> dict[int, float]:
    lengths = {number: len(sequence.trained) for number, sequence in batch.sequences.items()}
    weight = {
        "grpo": lambda n: 1 / (len(members) * lengths[n]),
        "bnpo": lambda n: 1 / sum(lengths[m] for m in members),
        "dapo": lambda n: num_steps / sum(lengths.values()),
        "dr_grpo": lambda n: 1 / (len(members) * MAX_COMPLETION_TOKENS),
    }[loss_type]
    return {number: weight(number) for number in members}


def _adamw(model: Any, spec: LearnerSpec) -> torch.optim.Optimizer:
    """Weight decay on matrices only."""
    settings = spec.optimizer
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.epsilon)
