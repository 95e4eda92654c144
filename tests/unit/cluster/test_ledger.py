import asyncio
import random
from dataclasses import dataclass

import pytest

from rlflow.cluster.ledger import PromptLedger


@dataclass(frozen=True)
class Request:
    slot: int
    prompt_id: int = 0


def requests_for(count):
    return [Request(slot) for slot in range(count)]


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 10))


def test_prompts_are_leased_in_order_until_all_are_done():
    async def main():
        ledger = PromptLedger(requests_for(3))
        for expected in range(3):
            request = await ledger.lease("a")
            assert request.slot == expected
            assert not ledger.is_done
            assert await ledger.finish(request.slot, "a")
        assert ledger.is_done
        assert await ledger.lease("a") is None

    run(main())


def test_a_slow_worker_does_not_keep_others_idle():
    async def main():
        ledger, sampled = PromptLedger(requests_for(10)), {"slow": [], "fast": []}
        gate = asyncio.Event()

        async def serve(worker):
            while (request := await ledger.lease(worker)) is not None:
                if worker == "slow":
                    await gate.wait()
                sampled[worker].append(request.slot)
                await ledger.finish(request.slot, worker)
                if len(sampled["fast"]) == 9:
                    gate.set()

        await asyncio.gather(serve("slow"), serve("fast"))
        assert sampled == {"slow": [0], "fast": [1, 2, 3, 4, 5, 6, 7, 8, 9]}

    run(main())


def test_a_dead_workers_prompts_are_sampled_first_and_in_their_order():
    async def main():
        ledger = PromptLedger(requests_for(6))
        assert [(await ledger.lease(worker)).slot for worker in "aba"] == [0, 1, 2]
        assert await ledger.give_back("a") == 2
        assert await ledger.give_back("a") == 0
        assert [(await ledger.lease("b")).slot for _ in range(5)] == [0, 2, 3, 4, 5]

    run(main())


def test_a_waiting_worker_takes_over_what_comes_back():
    async def main():
        ledger = PromptLedger(requests_for(1))
        await ledger.lease("a")
        waiting = asyncio.create_task(ledger.lease("b"))
        await asyncio.sleep(0.01)
        assert not waiting.done(), "b waits: the prompt may still come back"
        await ledger.give_back("a")
        assert (await waiting).slot == 0

    run(main())


def test_a_waiting_worker_ends_when_the_last_prompt_is_done():
    async def main():
        ledger = PromptLedger(requests_for(1))
        await ledger.lease("a")
        waiting = asyncio.create_task(ledger.lease("b"))
        await asyncio.sleep(0)
        await ledger.finish(0, "a")
        assert await waiting is None

    run(main())


def test_a_result_counts_only_while_its_lease_is_held():
    async def main():
        ledger = PromptLedger(requests_for(1))
        await ledger.lease("a")
        await ledger.give_back("a")
        assert not await ledger.finish(0, "a"), "the lease went back before the result came"
        await ledger.lease("b")
        assert not await ledger.finish(0, "a"), "now b has it"
        assert not ledger.is_done
        assert await ledger.finish(0, "b")
        assert not await ledger.finish(0, "b")
        assert ledger.is_done

    run(main())


def test_the_same_prompt_may_stand_in_a_batch_twice():
    async def main():
        ledger = PromptLedger([Request(0, prompt_id=7), Request(1, prompt_id=7)])
        first, second = await ledger.lease("a"), await ledger.lease("b")
        assert first.prompt_id == second.prompt_id == 7
        assert await ledger.finish(first.slot, "a")
        assert not ledger.is_done
        assert await ledger.finish(second.slot, "b")
        assert ledger.is_done

    run(main())


def by_turns(request):
    return "ab"[request.slot % 2]


def test_assigned_prompts_wait_for_their_worker():
    async def main():
        ledger = PromptLedger(requests_for(4), by_turns)
        assert [(await ledger.lease("b")).slot for _ in range(2)] == [1, 3]
        waiting = asyncio.create_task(ledger.lease("b"))
        await asyncio.sleep(0.01)
        assert not waiting.done(), "what is left belongs to a"
        assert [(await ledger.lease("a")).slot for _ in range(2)] == [0, 2]
        waiting.cancel()

    run(main())


def test_a_dead_workers_assignments_are_open_to_all():
    async def main():
        ledger = PromptLedger(requests_for(6), by_turns)
        await ledger.lease("a")
        assert await ledger.give_back("a") == 1
        assert [(await ledger.lease("b")).slot for _ in range(6)] == [0, 1, 2, 3, 4, 5]

    run(main())


def test_giving_back_often_stays_quick_and_open_to_a_new_worker():
    async def main():
        ledger = PromptLedger(requests_for(20), by_turns)
        for _ in range(64):  # every request in flight on a dead worker reports it
            await ledger.give_back("a")
            await ledger.give_back("b")
        assert [(await ledger.lease("c")).slot for _ in range(20)] == list(range(20))

    run(main())


@pytest.mark.parametrize("assign", [None, lambda request: f"{request.slot % 3}"])
@pytest.mark.parametrize("seed", range(10))
def test_random_deaths_lose_nothing_and_repeat_nothing(seed, assign):
    async def main():
        chance, counted = random.Random(seed), []
        ledger = PromptLedger(requests_for(50), assign)

        async def serve(worker):
            """Dies now and then, with everything it holds, and is replaced under the same name."""
            while (request := await ledger.lease(worker)) is not None:
                for _ in range(chance.randint(0, 3)):
                    await asyncio.sleep(0)
                if chance.random() < 0.2:
                    await ledger.give_back(worker)
                    continue
                if await ledger.finish(request.slot, worker):
                    counted.append(request.slot)

        await asyncio.gather(*(serve(str(i % 3)) for i in range(9)))
        assert ledger.is_done
        assert sorted(counted) == list(range(50))

    run(main())
