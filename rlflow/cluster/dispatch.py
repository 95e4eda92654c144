"""Feeding prompts to the rollout workers, whatever becomes of them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from ray import ObjectRef
from ray.exceptions import RayActorError, RayTaskError

from rlflow.cluster.failure import RolloutsLost
from rlflow.cluster.ledger import Prompt, PromptLedger
from rlflow.cluster.rollout_group import RolloutGroup, RolloutWorker
from rlflow.errors import EngineDied
from rlflow.rollout.completions import GroupRequest, GroupSummary

Asked = TypeVar("Asked", bound=Prompt)


class Dispatch(Generic[Asked]):
    """Every worker leases prompts from a ledger, so that a slow prompt keeps no other worker idle; a dead one's leases return.

    `ask` makes the request for what was leased, or says that there is none; `deliver` gets every sampled group exactly once;
    `refuse` gets what an engine would not sample, and may raise.
    """

    def __init__(
        self,
        rollouts: RolloutGroup,
        *,
        groups_in_flight: int,
        ask: Callable[[Asked], Awaitable[GroupRequest | None]],
        deliver: Callable[[Asked, GroupSummary, ObjectRef], None],
        refuse: Callable[[Asked, str], None],
    ) -> None:
        self._rollouts, self._groups_in_flight = rollouts, groups_in_flight
        self._ask, self._deliver, self._refuse = ask, deliver, refuse

    async def run(self, ledger: PromptLedger[Asked], recover: Callable[[], Awaitable[None]]) -> None:
        """Until all prompts are done. `recover` starts engines when none is left; the ledger then goes on."""
        while not ledger.is_done:
            if not self._rollouts.workers:
                await recover()
            await self._serve_all(ledger)

    async def _serve_all(self, ledger: PromptLedger[Asked]) -> None:
        """Run until all prompts are done or no worker is left."""
        workers = list(self._rollouts.workers)
        tasks = [asyncio.create_task(self._serve(worker, ledger)) for worker in workers for _ in range(self._groups_in_flight)]
        try:
            await asyncio.gather(*tasks)
        except RolloutsLost:
            pass  # the caller starts engines and goes on
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for worker in workers:  # a task that waited for a lease may have got one back from a dead worker's other tasks
            await ledger.give_back(worker.name)

    async def _serve(self, worker: RolloutWorker, ledger: PromptLedger[Asked]) -> None:
        while (asked := await ledger.lease(worker.name)) is not None:
            request = await self._ask(asked)
            if request is None:
                await ledger.finish(asked.slot, worker.name)
                continue
            summary_ref, arrays = worker.generate(request)
            try:
                summary = await summary_ref
            except (RayActorError, EngineDied) as error:
                await self._lose(worker, ledger, error)
                return
            except RayTaskError as error:
                self._refuse(asked, _last_line(error))
                await ledger.finish(asked.slot, worker.name)
                continue
            if not await ledger.finish(asked.slot, worker.name):
                return
            self._deliver(asked, summary, arrays)

    async def _lose(self, worker: RolloutWorker, ledger: PromptLedger[Asked], error: Exception) -> None:
        self._rollouts.mark_dead(worker, error)
        await ledger.give_back(worker.name)
        if not self._rollouts.workers:
            raise RolloutsLost("no rollout worker is left") from error


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
