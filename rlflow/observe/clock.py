"""Where the time of a step goes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class StepClock:
    """Seconds of a step by phase. What no phase covers is idle: the driver's own work."""

    def __init__(self, on_phase: Callable[[str], None] | None = None) -> None:
        self._begin = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self._on_phase = on_phase

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside as `name`; phases do not nest."""
        if self._on_phase:
            self._on_phase(name)
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - begin)

    def add(self, name: str, seconds: float) -> None:
        """Count seconds measured elsewhere."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def move(self, source: str, target: str, seconds: float) -> None:
        """Count part of a phase as another."""
        self.add(source, -seconds)
        self.add(target, seconds)

    def metrics(self) -> dict[str, float]:
        """`<phase>_seconds`, `step_seconds` and `idle_seconds` up to now."""
        total = time.perf_counter() - self._begin
        phases = {f"{name}_seconds": seconds for name, seconds in self._seconds.items()}
        return {**phases, "step_seconds": total, "idle_seconds": total - sum(self._seconds.values())}
