"""Calling a bound reward inside its process; whatever it raises becomes data."""

import asyncio
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from rlflow.errors import RlflowError
from rlflow.rewards.api import RewardSample
from rlflow.rewards.binding import BoundReward
from rlflow.rewards.protocol import CallMode, Failed, Outcome, Outcomes
from rlflow.rewards.values import read_batch, read_value

Emit = Callable[[Outcomes], None]


class RewardCaller:
    """Calls one reward. `timeout_s` limits each call of a concurrent reward; others are limited from outside.

    The runner keeps one event loop for the process's life: clients of asynchronous plugins are bound to it.
    """

    def __init__(self, reward: BoundReward, timeout_s: float, runner: asyncio.Runner) -> None:
        self._reward = reward
        self._timeout_s = timeout_s
        self._runner = runner

    def call(self, samples: Sequence[RewardSample], emit: Emit) -> None:
        """Score the samples and emit every position's outcome once, as soon as it is known."""
        match self._reward.mode:
            case CallMode.ONE_BY_ONE:
                for index, sample in enumerate(samples):
                    emit({index: self._call_one(sample)})
            case CallMode.CONCURRENT:
                self._runner.run(self._call_all(samples, emit))
            case CallMode.BATCH:
                emit(self._call_batch(samples))

    def _call_one(self, sample: RewardSample) -> Outcome:
        # A plugin may also raise SystemExit or math-verify's TimeoutException, which are BaseExceptions.
        try:
            return read_value(self._reward.function(sample))
        except BaseException as error:
            return describe_failure(error)

    async def _call_all(self, samples: Sequence[RewardSample], emit: Emit) -> None:
        async def call_and_emit(index: int, sample: RewardSample) -> None:
            emit({index: await self._call_one_async(sample)})

        await asyncio.gather(*(call_and_emit(index, sample) for index, sample in enumerate(samples)))

    async def _call_one_async(self, sample: RewardSample) -> Outcome:
        limit = asyncio.timeout(self._timeout_s)
        try:
            async with limit:
                value = await self._reward.function(sample)
            return read_value(value)
        except BaseException as error:
            return Failed(describe_timeout(self._timeout_s)) if limit.expired() else describe_failure(error)

    def _call_batch(self, samples: Sequence[RewardSample]) -> Outcomes:
        try:
            values = self._reward.function(samples)
            if self._reward.is_async:
                values = self._runner.run(_wait_for(values))
            return {i: _read_entry(v) for i, v in enumerate(read_batch(values, len(samples)))}
        except BaseException as error:
            return dict.fromkeys(range(len(samples)), describe_failure(error))


async def _wait_for(awaitable: Any) -> Any:
    return await awaitable


def _read_entry(value: Any) -> Outcome:
    try:
        return read_value(value)
    except RlflowError as error:
        return describe_failure(error)


def describe_failure(error: BaseException) -> Failed:
    """One line and the traceback."""
    return Failed(describe_error(error), "".join(traceback.format_exception(error)))


def describe_error(error: BaseException) -> str:
    """One line: our own errors by their message, others with their type."""
    text = str(error) if isinstance(error, RlflowError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())


def describe_timeout(timeout_s: float) -> str:
    """The message of a call that was given up."""
    return f"no result within {timeout_s:g} s (`timeout_s`)"
