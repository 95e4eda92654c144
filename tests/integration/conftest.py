"""Fixtures that several modules share: one Ray head for all of them."""

from tests.integration.ray_head import ray_head

__all__ = ["ray_head"]
