"""Ending the actors of a run, in bounded time, whatever state the cluster is in."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from rlflow.cluster.placement import Placement

logger = logging.getLogger("rlflow")

CLOSE_TIMEOUT_S = 2.5
"""Ray kills a stopped job 3 s after the signal; engines need about 1 s to end their processes."""


async def close_run(placement: Placement, *closers: Coroutine[Any, Any, None]) -> None:
    """Close everything side by side, then free the resources. What does not end in time dies with the job."""
    results = await asyncio.gather(*(_bounded(closer) for closer in closers))
    if all(results):
        await _bounded(asyncio.to_thread(placement.remove))


async def _bounded(closer: Coroutine[Any, Any, None]) -> bool:
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await closer
    except TimeoutError:
        owner = closer.__qualname__.rpartition(".")[0]
        logger.warning(f"while closing: {owner} had not ended after {CLOSE_TIMEOUT_S} s; its processes end with the job")
        return False
    except Exception as error:
        logger.warning(f"while closing: {type(error).__name__}: {error}")
        return False
    return True
