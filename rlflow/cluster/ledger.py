"""Which prompts are waiting, which are being sampled, and by whom."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar


class Prompt(Protocol):
    """What the ledger needs to know of a request."""

    @property
    def slot(self) -> int:
        """Identifies the request within the batch."""
        ...


Request = TypeVar("Request", bound=Prompt)


class PromptLedger(Generic[Request]):
    """{pending, leased, done} for one batch of prompts; every prompt is in exactly one of them.

    A worker leases when it has room, so that a slow prompt never keeps another worker idle. A dead worker's leases return.
    `assign`, if given, names the only worker that may take a prompt (deterministic runs).
    """

    def __init__(self, requests: Sequence[Request], assign: Callable[[Request], str] | None = None) -> None:
        self._pending: deque[Request] = deque(requests)
        self._leased: dict[int, tuple[str, Request]] = {}
        self._done: set[int] = set()
        self._assign = assign
        self._unassigned: set[str] = set()
        self._changed = asyncio.Condition()

    @property
    def is_done(self) -> bool:
        """Whether every prompt has been sampled."""
        return not self._pending and not self._leased

    async def lease(self, worker: str) -> Request | None:
        """The next prompt for `worker`; waits while others hold leases that may come back. None: all prompts are done."""
        async with self._changed:
            while not self.is_done:
                request = self._take(worker)
                if request is not None:
                    self._leased[request.slot] = (worker, request)
                    return request
                await self._changed.wait()
            return None

    async def finish(self, slot: int, worker: str) -> bool:
        """`worker` has sampled the prompt. False: its lease had gone back, so another one samples it and this result is void."""
        async with self._changed:
            if slot not in self._leased or self._leased[slot][0] != worker:
                return False
            del self._leased[slot]
            self._done.add(slot)
            self._changed.notify_all()
            return True

    async def give_back(self, worker: str) -> int:
        """Return all leases of a dead worker, to be sampled first; also undo its assignments. Returns how many."""
        async with self._changed:
            returned = [request for owner, request in self._leased.values() if owner == worker]
            for request in returned:
                del self._leased[request.slot]
            self._pending.extendleft(reversed(returned))
            self._unassigned.add(worker)
            self._changed.notify_all()
            return len(returned)

    def _take(self, worker: str) -> Request | None:
        for position, request in enumerate(self._pending):
            if self._assign is None or self._assign(request) in {worker, *self._unassigned}:
                del self._pending[position]
                return request
        return None
