"""When a run ends before its last step, and that a resumed run goes on counting."""

import asyncio
import math
from dataclasses import dataclass, field

import pytest

from rlflow.data.order import RowOrder
from rlflow.loops.early_stopping import note_evaluation, stop_reason
from rlflow.loops.rows import RowLoop
from rlflow.loops.state import LoopState
from rlflow.observe.clock import StepClock
from rlflow.spec.load import parse_job
from rlflow.spec.run import EarlyStoppingSpec


def seen(values, **fields):
    """The state after these evaluations of `eval_x`."""
    state, spec = LoopState(), EarlyStoppingSpec(metric="eval_x", **fields)
    for value in values:
        note_evaluation(state, {"eval_x": value}, spec)
    return state, stop_reason(state, spec)


@pytest.mark.parametrize(
    ("values", "fields", "stops"),
    [
        ([3, 2, 1, 1, 1], {"mode": "min", "patience": 2}, True),
        ([3, 2, 1, 1], {"mode": "min", "patience": 2}, False),
        ([3, 4, 4, 2], {"mode": "min", "patience": 2}, False),
        ([1, 2, 3], {"mode": "min", "patience": 2}, True),
        ([1, 2, 3], {"mode": "max", "patience": 2}, False),
        ([0.5, 0.55, 0.59], {"mode": "max", "patience": 2, "min_delta": 0.1}, True),
        ([0.5, 0.55, 0.61], {"mode": "max", "patience": 2, "min_delta": 0.1}, False),
        ([1, math.nan, math.nan], {"mode": "min", "patience": 2}, True),
        ([math.nan, 1], {"mode": "min", "patience": 2}, False),
    ],
)
def test_patience(values, fields, stops):
    assert (seen(values, **fields)[1] is not None) is stops


def test_the_reason_names_step_metric_and_best():
    assert seen([2, 1, 1.5], mode="min", patience=1)[1] == (
        "stopped early after step 0: eval_x (1 at best) got no better in 1 evaluations"
    )


def test_without_the_setting_nothing_is_counted():
    state = LoopState()
    note_evaluation(state, {"eval_x": 1.0}, None)
    assert state == LoopState() and stop_reason(state, None) is None


@dataclass
class Record:
    """What a loop writes: its journal and its checkpoints."""

    steps: list = field(default_factory=list)
    saved: dict = field(default_factory=dict)
    reason: str | None = None

    def begin(self, total_steps):
        pass

    def clock(self):
        return StepClock(lambda name: None)

    def step(self, step, metrics, clock):
        self.steps.append(step)

    def ended(self, early):
        self.reason = early

    def check_evaluation(self, metrics):
        pass

    def is_due(self, step, metrics, *, is_last):
        return is_last or step % 4 == 0

    async def save(self, step, state, metrics):
        self.saved[step] = state


class Scripted(RowLoop):
    """Its evaluation after step s is losses[s]."""

    num_held_out = 1
    losses = (9, 8, 7, 6, 6, 6, 6, 6, 6, 6)

    async def train_rows(self, rows, rate):
        return {}

    async def measure(self, rows):
        return {"loss": self.losses[self.state.step]}

    def count_tokens(self, rows):
        return 1


def run(state, patience=3):
    stopping = {"metric": "eval_loss", "mode": "min", "patience": patience}
    job = parse_job(
        {
            "kind": "sft",
            "run": {"name": "try", "early_stopping": stopping},
            "model": {"path": "m"},
            "data": {"sources": "a.csv", "held_out": 1},
            "evaluate": {"every": 1},
            "batch_size": 2,
            "steps": 9,
        }
    )
    record = Record()
    asyncio.run(Scripted(job, 9, RowOrder(8, 0, True), record, record, state).run())
    return record


def test_a_loop_ends_with_a_checkpoint_and_a_reason():
    record = run(LoopState())
    assert record.steps == [0, 1, 2, 3, 4, 5, 6]
    assert list(record.saved) == [4, 6]
    assert record.reason == "stopped early after step 6: eval_loss (6 at best) got no better in 3 evaluations"
    assert run(LoopState(), patience=8).reason is None


def test_a_resumed_loop_goes_on_counting():
    saved = run(LoopState()).saved
    resumed = run(LoopState.from_dict(saved[4]))
    assert resumed.steps == [5, 6] and resumed.reason is not None
    again = run(LoopState.from_dict(saved[6]))  # cut off after its last checkpoint
    assert again.steps == [] and again.reason == resumed.reason
