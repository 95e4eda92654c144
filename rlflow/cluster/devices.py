"""Which role runs on which device: a pure function of the spec and the number of devices."""

from dataclasses import dataclass
from typing import Literal

from rlflow.errors import SpecError

ROLLOUT_SHARE = 0.5
"""Share of a device that a rollout engine is booked with when a learner rank sits beside it; Ray only counts it."""
CPU_DEVICE_CPUS = 0.5
"""CPUs booked for a device of a machine without GPUs: workers take turns, so they share the cores."""
GPU_DEVICE_CPUS = 2.0
"""CPUs booked beside each GPU."""
REWARD_CPUS = 0.5
"""CPUs booked for a reward worker."""


@dataclass(frozen=True, slots=True)
class Seat:
    """An actor's place."""

    role: Literal["learner", "rollout", "reward"]
    index: int
    bundle: int
    devices: tuple[int, ...]
    """Devices (bundles of kind gpu or cpu) it computes on; none for reward workers."""
    share: float
    """Of each device."""


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
) -> DevicePlan:
    """Learner rank r sits on device r; engine i on devices i*t to i*t + t-1; they share devices by turns."""
    if tensor_parallel_size > 1 and device == "cpu":
        raise SpecError("rollout.tensor_parallel_size: engines without GPU cannot be spread over devices; set it to 1")
    num_devices = max(learner_ranks, rollout_workers * tensor_parallel_size)
    device_bundle = {"GPU": 1.0, "CPU": GPU_DEVICE_CPUS} if device == "gpu" else {"CPU": CPU_DEVICE_CPUS}
    bundles = [device_bundle] * num_devices + [{"CPU": REWARD_CPUS}] * reward_workers
    rollout_devices = set(range(rollout_workers * tensor_parallel_size))
    seats = [Seat("learner", r, r, (r,), 1 - ROLLOUT_SHARE if r in rollout_devices else 1.0) for r in range(learner_ranks)]
    for i in range(rollout_workers):
        devices = tuple(range(i * tensor_parallel_size, (i + 1) * tensor_parallel_size))
        shared = any(d < learner_ranks for d in devices)
        seats.append(Seat("rollout", i, devices[0], devices, ROLLOUT_SHARE if shared else 1.0))
    seats += [Seat("reward", i, num_devices + i, (), 0.0) for i in range(reward_workers)]
    return DevicePlan(device, num_devices, tuple(bundles), tuple(seats))
