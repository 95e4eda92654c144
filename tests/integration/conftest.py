"""Fixtures that several modules share: one Ray head, two jobs on it and one set of learner ranks for all."""

from collections.abc import Iterator

import pytest

from tests.integration.engines import RankGroup
from tests.integration.ray_head import ray_head
from tests.integration.ray_jobs import ray_jobs

__all__ = ["groups", "ray_head", "ray_jobs"]


@pytest.fixture(scope="session")
def groups() -> Iterator[dict[int, RankGroup]]:
    """Learner ranks by the size of their group."""
    groups = {1: RankGroup(1), 2: RankGroup(2)}
    yield groups
    for group in groups.values():
        group.stop()
