"""The engines of judges."""

import asyncio
import logging
import time
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayError

from rlflow.actors.judge import JudgeActor
from rlflow.actors.reward import RewardSetup
from rlflow.cluster.devices import DevicePlan, Seat
from rlflow.cluster.failure import in_one_line
from rlflow.cluster.placement import Placement
from rlflow.errors import RolloutError
from rlflow.spec.rewards import JudgeEngineSpec, JudgeSpec, judges_in_engines

logger = logging.getLogger("rlflow")


@dataclass(slots=True)
class _Engine:
    reward: int
    """Place of the judge among the rewards."""
    judge: JudgeSpec
    settings: JudgeEngineSpec
    seat: Seat
    actor: Any = None
    """None until it has started, and while it is dead."""
    url: str = ""

    @property
    def name(self) -> str:
        """Of its actor in the run, such as `judge-0`."""
        return f"{self.seat.role}-{self.seat.index}"


class JudgeGroup:
    """The engines of judges without an endpoint, `engine.num_workers` for each, on devices of their own: so a dead one can be
    started again at any time.
    """

    def __init__(self, placement: Placement, plan: DevicePlan, setup: RewardSetup, *, max_restarts: int) -> None:
        self._placement, self._setup = placement, setup
        judges = [(i, *judge) for i, judge in judges_in_engines(setup.rewards).items() for _ in range(judge[1].num_workers)]
        self._engines = [_Engine(*judge, seat) for judge, seat in zip(judges, plan.seats_of("judge"), strict=True)]
        self._max_starts = max_restarts + len(self._engines)
        self._last_error = ""
        self.num_starts = 0
        """Engines that have been started so far."""

    def setup_for(self, worker: int) -> RewardSetup:
        """What reward worker number `worker` is started with: it asks the engine of this number, and from the first again."""
        rewards = list(self._setup.rewards)
        for index, (judge, _) in judges_in_engines(rewards).items():
            urls = [engine.url for engine in self._engines if engine.reward == index]
            rewards[index] = judge.model_copy(update={"endpoint": urls[worker % len(urls)]})
        return replace(self._setup, rewards=tuple(rewards))

    async def mark_dead(self) -> bool:
        """Ask each engine whether it lives; whether there is one that does not."""
        asked = [engine for engine in self._engines if engine.actor is not None]
        answers = await asyncio.gather(*(engine.actor.check.remote() for engine in asked), return_exceptions=True)
        for engine, answer in zip(asked, answers, strict=True):
            if isinstance(answer, Exception):
                self._last_error = in_one_line(answer)
                logger.warning(f"the engine of {engine.name} died: {self._last_error}")
                ray.kill(engine.actor)
                engine.actor = None
        return any(engine.actor is None for engine in self._engines)

    async def start_missing(self) -> None:
        """Start the engines that are not there. Raises `RolloutError` if one does not start, or if they have died too often."""
        missing = [engine for engine in self._engines if engine.actor is None]
        if self.num_starts + len(missing) > self._max_starts:
            raise RolloutError(f"judges died more often than run.max_restarts allows; the last one with: {self._last_error}")
        begin = time.perf_counter()
        await asyncio.gather(*map(self._start, missing))
        if self.num_starts and missing:
            names = ", ".join(engine.name for engine in missing)
            logger.info(f"{names} started again after {time.perf_counter() - begin:.0f} s")
        self.num_starts += len(missing)

    async def _start(self, engine: _Engine) -> None:
        judge, limit_s = engine.judge, engine.settings.startup_timeout_s
        actor = self._placement.start(JudgeActor, engine.seat, max_concurrency=1000)
        try:
            async with asyncio.timeout(limit_s):
                engine.url = await actor.start.remote(judge, engine.settings, self._setup.num_threads)
            engine.actor = actor
        except TimeoutError:
            raise RolloutError(f"judge {judge.model} did not start within {limit_s:g} s") from None
        except RayError as error:
            raise RolloutError(f"judge {judge.model} did not start: {error}") from None
        finally:  # also where the start is cancelled, because a learner rank has died
            if engine.actor is None:
                ray.kill(actor)

    def close(self) -> None:
        """End all engines."""
        for engine in self._engines:
            if engine.actor is not None:
                ray.kill(engine.actor)
