"""Which role runs on which device: a pure function of the spec and the number of devices."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

CPU_DEVICE_CPUS = 0.5
"""CPUs booked for a device of a machine without GPUs: workers take turns, so they share the cores."""
GPU_DEVICE_CPUS = 2.0
"""CPUs booked beside each GPU."""
REWARD_CPUS = 0.5
"""CPUs booked for a reward worker."""


_COUNTED = 10_000
"""Parts of a resource that Ray tells apart."""

Role = Literal["learner", "rollout", "reward", "teacher", "judge"]


@dataclass(frozen=True, slots=True)
class Seat:
    """An actor's place."""

    role: Role
    index: int
    bundle: int
    devices: tuple[int, ...]
    """Devices (bundles of kind gpu or cpu) it computes on; none for reward workers without a model on one."""
    share: float
    """Of each device; Ray only counts it."""


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """Bundles of the placement group, and who sits where."""

    device: Literal["gpu", "cpu"]
    num_devices: int
    bundles: tuple[dict[str, float], ...]
    seats: tuple[Seat, ...]

    def seats_of(self, role: str) -> list[Seat]:
        """Seats of a role, by index."""
        return [seat for seat in self.seats if seat.role == role]


def plan_devices(
    *,
    device: Literal["gpu", "cpu"],
    learner_ranks: int,
    rollout_workers: int,
    tensor_parallel_size: int,
    reward_workers: int,
    rewards_on_devices: bool = False,
    teacher_ranks: int = 0,
    judges: Sequence[int] = (),
) -> DevicePlan:
    """Learner rank r sits on device r; engine i on devices i*t to i*t + t-1; they share devices by turns.

    Reward workers sit beside them: with `rewards_on_devices` worker i on device i (and from the first again), else on none.
    `teacher_ranks` and `judges` (devices of each judge's engine): nobody shares their devices.
    """
    t = tensor_parallel_size
    num_devices = max(learner_ranks, rollout_workers * t)
    device_bundle = {"GPU": 1.0, "CPU": GPU_DEVICE_CPUS} if device == "gpu" else {"CPU": CPU_DEVICE_CPUS}
    bundles = [device_bundle] * num_devices
    places: list[tuple[Role, int, tuple[int, ...]]] = [("learner", rank, (rank,)) for rank in range(learner_ranks)]
    places.extend([("rollout", i, tuple(range(i * t, (i + 1) * t))) for i in range(rollout_workers)])
    if rewards_on_devices:
        places.extend([("reward", i, (i % num_devices,)) for i in range(reward_workers)])
    seats = [Seat(role, index, where[0], where, _share(where, places)) for role, index, where in places]
    if not rewards_on_devices:
        bundles += [{"CPU": REWARD_CPUS}] * reward_workers
        seats += [Seat("reward", i, num_devices + i, (), 0.0) for i in range(reward_workers)]
    alone: list[tuple[Role, int, int]] = [("teacher", rank, 1) for rank in range(teacher_ranks)]
    alone.extend([("judge", index, size) for index, size in enumerate(judges)])
    for role, index, size in alone:
        seats.append(Seat(role, index, len(bundles), tuple(range(num_devices, num_devices + size)), 1.0))
        bundles.append({name: amount * size for name, amount in device_bundle.items()})
        num_devices += size
    return DevicePlan(device, num_devices, tuple(bundles), tuple(seats))


def whole_engines(plan: DevicePlan, nodes: Sequence[str]) -> list[int]:
    """For each bundle of the plan the one that takes its place, of those that lie on `nodes`: as many engines as there is room
    for have all their devices on one node.
    """
    size = max((len(seat.devices) for seat in plan.seats_of("rollout")), default=1)
    num_shared = 1 + max(device for seat in plan.seats if seat.role in ("learner", "rollout") for device in seat.devices)
    by_node: dict[str, list[int]] = {}
    for bundle in range(num_shared):
        by_node.setdefault(nodes[bundle], []).append(bundle)
    whole, rest = [], []
    for bundles in by_node.values():
        end = len(bundles) // size * size
        whole += bundles[:end]
        rest += bundles[end:]
    return [*whole, *rest, *range(num_shared, len(plan.bundles))]


def _share(devices: tuple[int, ...], places: Sequence[tuple[Role, int, tuple[int, ...]]]) -> float:
    """An equal part of the fullest device, rounded down to what Ray can count."""
    most = max(sum(device in others for _, _, others in places) for device in devices)
    return math.floor(_COUNTED / most) / _COUNTED
