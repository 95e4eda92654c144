"""The sampler's conversation with workers that die; workers are plain objects here, the ledger is the real one."""

import asyncio
import random
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
from ray.exceptions import RayActorError

from rlflow.cluster.sampler import Sampler
from rlflow.errors import GroupLost
from rlflow.rollout.completions import GroupRequest, GroupSummary

PROMPT = np.zeros(3, np.int32)


@dataclass(eq=False)
class Worker:
    """Samples in `turns()` turns of the event loop; a dead one fails every call, also those in progress."""

    name: str
    turns: object
    calls: list = field(default_factory=list)
    served: list = field(default_factory=list)

    def __post_init__(self):
        self.death = asyncio.get_running_loop().create_future()
        self.death.add_done_callback(lambda death: death.exception())

    def generate(self, request):
        self.calls.append(request.slot)
        return asyncio.ensure_future(self._generate(request)), object()

    async def _generate(self, request):
        for _ in range(self.turns()):
            await asyncio.sleep(0)
            if self.death.done():
                raise RayActorError
        if self.death.done():
            raise RayActorError
        self.served.append(request.slot)
        return GroupSummary(request.slot, request.prompt_id, 0, 1, 3, (1,), ("stop",))

    def die(self):
        if not self.death.done():
            self.death.set_exception(RayActorError())


@dataclass
class Rollouts:
    workers: list
    deaths: int = 0

    def mark_dead(self, worker, error):
        if worker in self.workers:
            self.workers.remove(worker)
            self.deaths += 1


class Rewards:
    def __init__(self, lost=()):
        self.scored = []
        self.lost = list(lost)
        """Rows whose groups are gone, once for each time that they stand here."""

    async def score(self, row, arrays):
        if row in self.lost:
            self.lost.remove(row)
            raise GroupLost("gone")
        self.scored.append(row)
        return [SimpleNamespace(total=1.0)], object()


def requests_for(prompt_ids):
    return [GroupRequest(slot, prompt_id, PROMPT, 1) for slot, prompt_id in enumerate(prompt_ids)]


def sample(make_workers, requests, *, recover=None, deterministic=False, in_flight=4, events=(), lost=()):
    """Run the sampler; returns the batch, the rewards, and every worker there was."""

    async def main():
        rollouts, rewards = Rollouts(make_workers()), Rewards(lost)
        everyone = list(rollouts.workers)

        async def start():
            rollouts.workers = recover()
            everyone.extend(rollouts.workers)

        sampler = Sampler(rollouts, rewards, groups_in_flight=in_flight, deterministic=deterministic)
        others = [asyncio.ensure_future(event(rollouts)) for event in events]
        batch = await asyncio.wait_for(sampler.sample(requests, lambda row: row, start), 10)
        for other in others:
            other.cancel()
        return batch, rewards, everyone

    return asyncio.run(main())


def test_groups_come_back_in_the_order_of_prompts_not_of_arrival():
    arrivals = random.Random(0)

    def make():
        return [Worker(name, lambda: arrivals.randint(1, 9)) for name in "ab"]

    batch, rewards, _ = sample(make, requests_for([5, 3, 5, 1]))
    assert [(g.summary.prompt_id, g.summary.slot) for g in batch.groups] == [(1, 3), (3, 1), (5, 0), (5, 2)]
    assert sorted(rewards.scored) == [1, 3, 5, 5]


def test_the_last_worker_dies_while_others_of_its_tasks_wait_for_prompts():
    async def kill(rollouts):
        await asyncio.sleep(0.01)
        rollouts.workers[0].die()

    batch, _, everyone = sample(
        lambda: [Worker("rollout-0", lambda: 10**9)],
        requests_for(range(3)),
        recover=lambda: [Worker("rollout-0", lambda: 1)],
        in_flight=8,  # five of the tasks wait for leases to come back
        events=[kill],
    )
    assert [g.summary.slot for g in batch.groups] == [0, 1, 2]
    assert sorted(everyone[1].served) == [0, 1, 2]


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_random_deaths_lose_nothing_and_score_nothing_twice(seed, deterministic):
    chance = random.Random(seed)

    async def kill_at_random(rollouts):
        for _ in range(12):
            for _ in range(chance.randint(1, 12)):
                await asyncio.sleep(0)
            if rollouts.workers:
                chance.choice(rollouts.workers).die()

    def make():
        return [Worker(f"rollout-{i}", lambda: chance.randint(1, 6)) for i in range(3)]

    prompts = [chance.randint(0, 9) for _ in range(40)]
    batch, rewards, _ = sample(make, requests_for(prompts), recover=make, deterministic=deterministic, events=[kill_at_random])
    assert sorted(g.summary.slot for g in batch.groups) == list(range(40))
    assert sorted(rewards.scored) == sorted(prompts)


class LateWorker(Worker):
    """Its first prompt fails; the result of its second one is there a turn later."""

    async def _generate(self, request):
        await asyncio.sleep(0.01)
        if request.slot == 0:
            raise RayActorError
        await asyncio.sleep(0)
        self.served.append(request.slot)
        return GroupSummary(request.slot, request.prompt_id, 0, 1, 3, (1,), ("stop",))


def test_a_result_that_arrives_after_its_lease_went_back_is_dropped():
    batch, rewards, (late, replacement) = sample(
        lambda: [LateWorker("rollout-0", turns=None)],
        requests_for(range(2)),
        recover=lambda: [Worker("rollout-0", lambda: 1)],
        in_flight=2,
    )
    assert late.served == [1], "the late result did arrive"
    assert sorted(replacement.served) == [0, 1]
    assert [g.summary.slot for g in batch.groups] == [0, 1]
    assert sorted(rewards.scored) == [0, 1]


def test_lost_groups_are_sampled_again_and_scored_once():
    batch, rewards, workers = sample(
        lambda: [Worker(name, lambda: 1) for name in "ab"], requests_for([4, 5, 6]), deterministic=True, lost=[5, 6, 6]
    )
    assert sorted(rewards.scored) == [4, 5, 6]
    assert [group.summary.prompt_id for group in batch.groups] == [4, 5, 6]
    assert [slot for worker in workers for slot in worker.calls].count(2) == 3, "the third prompt was lost twice"


def test_deterministic_runs_assign_prompts_to_workers_in_turn():
    _, _, everyone = sample(
        lambda: [Worker("a", lambda: 9), Worker("b", lambda: 1)],
        requests_for(range(6)),
        deterministic=True,
        in_flight=1,
    )
    assert [worker.served for worker in everyone] == [[0, 2, 4], [1, 3, 5]]
