"""Connecting to Ray, or starting it."""

import logging
import os
import socket
from typing import Any, Literal

import ray
from ray._private.services import find_gcs_addresses
from ray._private.utils import read_ray_address

from rlflow.errors import SpecError, UserError

_CONNECT_TIMEOUT_S = 5.0
logger = logging.getLogger("rlflow")


def connect() -> dict[str, Any]:
    """Join the cluster of RAY_ADDRESS or a running one; start a local one if there is none. Returns its resources.

    Raises `UserError` if nothing answers at RAY_ADDRESS.
    """
    if not ray.is_initialized():
        os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # an engine's end is said once, not by each group in it
        log_to_driver = os.environ.get("RLFLOW_ACTOR_LOGS", "0") == "1"
        ray.init(address=find_cluster(), logging_level=logging.ERROR, log_to_driver=log_to_driver)
    return ray.cluster_resources()


def find_cluster() -> str | None:
    """What to give `ray.init`: `local` where the cluster that the last `ray start` noted on this machine is gone, else None.

    Ray itself tries for many minutes to reach it. Raises `UserError` if nothing answers at RAY_ADDRESS.
    """
    named = os.environ.get("RAY_ADDRESS")
    if named and named != "auto":
        if named != "local" and "://" not in named and not _answers(named):
            raise UserError(f"RAY_ADDRESS: no Ray cluster answers at {named}")
        return None
    noted = read_ray_address()
    if noted is None or _answers(noted) or (named and find_gcs_addresses()):
        return None
    if named:
        raise UserError(f"RAY_ADDRESS: auto: no Ray cluster answers at {noted}, where the last `ray start` was")
    logger.info(f"no Ray cluster answers at {noted}, where the last `ray start` was: starting one for this job")
    return "local"


def _answers(address: str) -> bool:
    """Whether a connection to `host:port` can be made."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError):
        return False
    return True


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
