"""Whole GRPO jobs on one GPU, engines and learner by turns and together, a reward model beside them."""

import os

import pytest

from tests.gpu.cycle_job import run_cycle


@pytest.mark.parametrize("residency", ["turns", "together"])
def test_a_job_samples_learns_and_syncs(tmp_path, monkeypatch, residency):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0])
    steps = run_cycle(tmp_path, residency)
    sampling, learning = (steps[-1][f"gpu_memory_gib_{phase}"] for phase in ("sampling", "learning"))
    if residency == "turns":
        assert learning < sampling - 5, "the engine's cache is gone while the learner trains"
        assert {"sleep_seconds", "wake_seconds", "reload_seconds", "offload_seconds"} <= steps[-1].keys()
    else:
        assert abs(learning - sampling) < 5
