"""The engines of judges."""

import asyncio
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError

from rlflow.actors.judge import JudgeActor
from rlflow.actors.reward import RewardSetup
from rlflow.cluster.devices import DevicePlan, Seat
from rlflow.cluster.placement import Placement
from rlflow.errors import RolloutError
from rlflow.spec.rewards import JudgeSpec


class JudgeGroup:
    """Starts the engines of judges without an endpoint: `engine.num_workers` for each, on devices of their own."""

    def __init__(self, placement: Placement, plan: DevicePlan) -> None:
        self._placement, self._seats = placement, plan.seats_of("judge")
        self._actors: list[Any] = []

    async def start(self, setup: RewardSetup) -> list[RewardSetup]:
        """Setups of reward workers that know the endpoints; worker i gets the i-th, and from the first again.

        Raises `RolloutError` if an engine does not start.
        """
        engines = {
            index: reward.engine.num_workers
            for index, reward in enumerate(setup.rewards)
            if isinstance(reward, JudgeSpec) and reward.engine is not None
        }
        wanted = [setup.rewards[index] for index, count in engines.items() for _ in range(count)]
        starts = [self._start(seat, judge, setup) for seat, judge in zip(self._seats, wanted, strict=True)]
        started = iter(await asyncio.gather(*starts))
        urls = {index: [next(started) for _ in range(count)] for index, count in engines.items()}
        return [_with_endpoints(setup, urls, worker) for worker in range(max(engines.values(), default=1))]

    async def _start(self, seat: Seat, judge: Any, setup: RewardSetup) -> str:
        actor = self._placement.start(JudgeActor, seat, max_concurrency=1000)
        self._actors.append(actor)
        try:
            return await asyncio.wait_for(_awaited(actor.start.remote(judge, setup.num_threads)), judge.engine.startup_timeout_s)
        except TimeoutError:
            raise RolloutError(f"judge {judge.model} did not start within {judge.engine.startup_timeout_s:g} s") from None
        except RayError as error:
            raise RolloutError(f"judge {judge.model} did not start: {error}") from None

    async def close(self) -> None:
        """Stop all engines and end the actors."""
        await asyncio.gather(*(actor.close.remote() for actor in self._actors), return_exceptions=True)
        for actor in self._actors:
            ray.kill(actor)


async def _awaited(reference: Any) -> Any:
    return await reference


def _with_endpoints(setup: RewardSetup, urls: dict[int, list[str]], worker: int) -> RewardSetup:
    rewards = tuple(
        reward.model_copy(update={"endpoint": urls[index][worker % len(urls[index])]}) if index in urls else reward
        for index, reward in enumerate(setup.rewards)
    )
    return replace(setup, rewards=rewards)
