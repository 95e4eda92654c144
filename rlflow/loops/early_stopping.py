"""Ending a run whose evaluations no longer get better. What was seen is in the loop's state: a resumed run goes on counting."""

import math
from collections.abc import Mapping

from rlflow.loops.state import LoopState
from rlflow.spec.run import EarlyStoppingSpec


def note_evaluation(state: LoopState, metrics: Mapping[str, float], spec: EarlyStoppingSpec | None) -> None:
    """Take the figures of an evaluation into account; NaN is never better."""
    if spec is None or spec.metric not in metrics:
        return
    value, best = metrics[spec.metric], state.best_evaluation
    gain = 0.0 if best is None else (value - best) * (1 if spec.mode == "max" else -1)
    if math.isfinite(value) and (best is None or gain > spec.min_delta):
        state.best_evaluation, state.evaluations_since_best = value, 0
    else:
        state.evaluations_since_best += 1


def stop_reason(state: LoopState, spec: EarlyStoppingSpec | None) -> str | None:
    """Why the run ends here; None if it goes on."""
    if spec is None or state.evaluations_since_best < spec.patience:
        return None
    best = "never a number" if state.best_evaluation is None else f"{state.best_evaluation:.4g} at best"
    return f"stopped early after step {state.step}: {spec.metric} ({best}) got no better in {spec.patience} evaluations"
