"""The placement group of a run, and starting actors in it."""

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlflow.cluster.devices import DevicePlan, Seat, whole_engines
from rlflow.errors import RolloutError, SpecError

logger = logging.getLogger("rlflow")

_WAIT_S = 10.0


class Placement:
    """Actors of a run, named `run/role-index`, in one placement group."""

    def __init__(self, run: str, plan: DevicePlan, *, timeout_s: float = 600.0) -> None:
        self._run, self._plan = run, plan
        self._starts: dict[str, int] = {}
        self._group: PlacementGroup = placement_group(list(plan.bundles), strategy="PACK", name=f"{run}/devices")
        self._wait(timeout_s)
        nodes = placement_group_table(self._group)["bundles_to_node_id"]
        self._bundles = whole_engines(plan, [nodes[bundle] for bundle in range(len(plan.bundles))])

    def start(self, actor_class: type, seat: Seat, *arguments: Any, **options: Any) -> Any:
        """Start `actor_class(label, *arguments)` in its seat. `options` are Ray's."""
        label = f"{self._run}/{seat.role}-{seat.index}"
        count = self._starts[label] = self._starts.get(label, 0) + 1
        return (
            ray.remote(actor_class)
            .options(
                name=label if count == 1 else f"{label}#{count}",  # a dead actor's name is free only some time later
                namespace=self._run,
                scheduling_strategy=self._in_bundle(seat.bundle),
                runtime_env={"env_vars": actor_environment(self._plan, os.environ)},
                **self._resources(seat),
                **options,
            )
            .remote(label, *arguments)
        )

    async def gpus_of(self, seat: Seat) -> str | None:
        """What CUDA_VISIBLE_DEVICES is to be for an engine over the GPUs of several bundles: Ray shows it the one of its own.

        None for other engines. Raises `RolloutError` if the GPUs are on several nodes.
        """
        if self._plan.device == "cpu" or len(seat.devices) == 1:
            return None
        bundles = range(seat.bundle, seat.bundle + len(seat.devices))
        here = [_gpu_here.options(num_gpus=seat.share, scheduling_strategy=self._in_bundle(bundle)) for bundle in bundles]
        found = await asyncio.gather(*(task.remote() for task in here))
        if len({node for node, _ in found}) > 1:
            where = f"Ray found no {len(seat.devices)} free GPUs on one node for {seat.role}-{seat.index}"
            raise RolloutError(f"rollout.tensor_parallel_size: {len(seat.devices)}: {where}")
        return ",".join(gpu for _, gpu in found)

    def remove(self) -> None:
        """Free the resources; actors still in the group die."""
        remove_placement_group(self._group)

    def _resources(self, seat: Seat) -> dict[str, float]:
        bundle = self._plan.bundles[seat.bundle]
        share = seat.share if seat.devices else 1.0
        return {"num_cpus": bundle["CPU"] * share, "num_gpus": bundle.get("GPU", 0.0) * share}

    def _in_bundle(self, bundle: int) -> PlacementGroupSchedulingStrategy:
        return PlacementGroupSchedulingStrategy(self._group, self._bundles[bundle])

    def _wait(self, timeout_s: float) -> None:
        """Wait for the resources, saying what is missing."""
        deadline = time.monotonic() + timeout_s
        while not self._group.wait(min(_WAIT_S, timeout_s)):
            wanted = _total(self._plan)
            available = {name: ray.available_resources().get(name, 0.0) for name in wanted}
            message = f"waiting for resources: wanted {wanted}, available {available}"
            if time.monotonic() > deadline:
                remove_placement_group(self._group)
                raise SpecError(f"run.name: {self._run}: gave up {message}")
            logger.warning(message)


@ray.remote(num_cpus=0)
def _gpu_here() -> tuple[str, str]:
    """The node, and the GPU of this task's bundle."""
    context = ray.get_runtime_context()
    [gpu] = context.get_accelerator_ids()["GPU"]
    return context.get_node_id(), gpu


def actor_environment(plan: DevicePlan, own: Mapping[str, str]) -> dict[str, str]:
    """Variables that actors need from their start, besides the driver's `own`.

    Without GPUs they share the CPUs by turns: OpenMP threads that spin while they wait would take them from the actor whose turn
    it is. An engine that is alone samples a sixth slower if they do not. Set OMP_WAIT_POLICY to have it otherwise.
    """
    is_alone = len([seat for seat in plan.seats if seat.role != "reward"]) == 1 and bool(plan.seats_of("rollout"))
    return {} if plan.device == "gpu" or is_alone or "OMP_WAIT_POLICY" in own else {"OMP_WAIT_POLICY": "PASSIVE"}


def _total(plan: DevicePlan) -> dict[str, float]:
    names = {name for bundle in plan.bundles for name in bundle}
    return {name: sum(bundle.get(name, 0.0) for bundle in plan.bundles) for name in sorted(names)}
