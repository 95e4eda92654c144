"""Connecting to Ray, or starting it."""

import logging
import os
from typing import Any, Literal

import ray

from rlflow.errors import SpecError


def connect() -> dict[str, Any]:
    """Join the cluster of RAY_ADDRESS or a running one; start a local one if there is none. Returns its resources."""
    if not ray.is_initialized():
        ray.init(logging_level=logging.ERROR, log_to_driver=os.environ.get("RLFLOW_ACTOR_LOGS", "0") == "1")
    return ray.cluster_resources()


def dashboard_url() -> str | None:
    """Where the dashboard is served, if it is."""
    url = ray.worker.global_worker.node.webui_url if ray.is_initialized() and ray.worker.global_worker.node else None
    return f"http://{url}" if url else None


def choose_device(wanted: Literal["auto", "gpu", "cpu"], resources: dict[str, Any]) -> Literal["gpu", "cpu"]:
    """GPUs if the cluster has any, unless the spec says otherwise."""
    has_gpus = resources.get("GPU", 0) > 0
    if wanted == "gpu" and not has_gpus:
        raise SpecError("run.device: the cluster has no GPU; set it to auto or cpu")
    return "gpu" if has_gpus and wanted != "cpu" else "cpu"
