"""Loops evaluate before they train, and end there if that does not give what the run asks for."""

import asyncio
from types import SimpleNamespace

import pytest

from rlflow.errors import SpecError
from rlflow.loops.rows import RowLoop
from rlflow.loops.sampling import SamplingLoop
from rlflow.loops.state import LoopState
from rlflow.observe.clock import StepClock
from tests.unit.loops.test_requests import job


class Strict:
    """Checkpoints that want another figure."""

    def check_evaluation(self, metrics):
        raise SpecError(f"not among {sorted(metrics)}")


class Silent:
    """A journal, and devices that nothing is moved on."""

    weight_version = 1

    def begin(self, total_steps):
        pass

    def note(self, text):
        pass

    def clock(self):
        return StepClock()

    async def to_sampling(self):
        pass

    def metrics(self):
        return {}


class Rows(RowLoop):
    num_held_out = 1

    async def train_rows(self, rows, rate):
        pytest.fail("it trained")

    async def measure(self, rows):
        return {"loss": 1.0}

    def count_tokens(self, rows):
        return 1


class Prompts(SamplingLoop):
    async def take_step(self, step, rows, clock):
        pytest.fail("it trained")


def test_rows():
    spec = SimpleNamespace(evaluate=SimpleNamespace(max_rows=None))
    loop = Rows(spec, 2, order=None, checkpoints=Strict(), journal=Silent(), state=LoopState())
    with pytest.raises(SpecError, match=r"not among \['eval_loss'\]"):
        asyncio.run(loop.run())


def test_prompts():
    loop = Prompts(
        job(), 2, None, None, Silent(), prompts=[], held_out=[], order=None, checkpoints=Strict(), journal=Silent(),
        state=LoopState(),
    )  # fmt: skip
    with pytest.raises(SpecError, match=r"not among \[\]"):
        asyncio.run(loop.run())
