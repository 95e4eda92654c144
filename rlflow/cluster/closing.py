"""Ending the actors of a run, in bounded time, whatever state the cluster is in."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Protocol

from rlflow.cluster.placement import Placement

logger = logging.getLogger("rlflow")

CLOSE_TIMEOUT_S = 2.5
"""Ray kills a stopped job 3 s after the signal."""


class Closable(Protocol):
    """Actors of a run."""

    async def close(self) -> None:
        """End them."""
        ...


async def close_run(placement: Placement, *groups: Closable) -> None:
    """Close everything side by side, then free the resources. What does not end in time dies with the job."""
    results = await asyncio.gather(*(_bounded(type(group).__name__, group.close()) for group in groups))
    if all(results):
        await _bounded("the placement", asyncio.to_thread(placement.remove))


async def _bounded(what: str, closer: Coroutine[Any, Any, None]) -> bool:
    limit = asyncio.timeout(CLOSE_TIMEOUT_S)
    try:
        async with limit:
            await closer
    except Exception as error:
        if limit.expired():
            logger.warning(f"while closing: {what} had not ended after {CLOSE_TIMEOUT_S} s; its processes end with the job")
        else:
            logger.warning(f"while closing: {what}: {type(error).__name__}: {error}")
        return False
    return True
