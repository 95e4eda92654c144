"""The learning rate as a pure function of the optimiser step."""

import math

from rlflow.spec.learner import LearnerSpec


def learning_rate(spec: LearnerSpec, step: int, total_steps: int) -> float:
    """Learning rate of optimiser step `step` (from 0) of `total_steps`.

    Warm-up is linear and ends with the full rate: step s of w warm-up steps has (s + 1) / w of it. The decay reaches
    `min_learning_rate` at the last step.
    """
    schedule, peak, floor = spec.schedule, spec.optimizer.learning_rate, spec.schedule.min_learning_rate
    warmup = schedule.warmup_steps if schedule.warmup_steps is not None else round(schedule.warmup_fraction * total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule.type == "constant":
        return peak
    progress = min(1.0, (step - warmup) / max(1, total_steps - 1 - warmup))
    decay = 1 - progress if schedule.type == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return floor + (peak - floor) * decay
