"""Where metrics go, one row per optimiser step: a file, TensorBoard, Prometheus through Ray."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rlflow.observe.metrics import describe, validate
from rlflow.observe.run_dir import RunDirectory


class Sink(Protocol):
    """Takes rows of metrics (names of `rlflow.observe.metrics`; None where a step has no value)."""

    def write(self, row: Mapping[str, object]) -> None:
        """Record one row."""
        ...

    def close(self) -> None:
        """Flush and free what the sink holds."""
        ...


class JsonlSink:
    """`metrics.jsonl` of the run directory."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run

    def write(self, row: Mapping[str, object]) -> None:
        """Append the row and flush it."""
        self._run.append_metrics(row)

    def close(self) -> None:
        """Nothing is held open between rows."""


class TensorBoardSink:
    """Event files that `tensorboard --logdir` reads, through TensorBoard's own writer."""

    def __init__(self, directory: Path) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(directory))
        # Generated modules: their classes exist at run time only.
        self._event_pb2: Any = event_pb2
        self._summary_pb2: Any = summary_pb2
        self._last_step: int | None = None

    def write(self, row: Mapping[str, object]) -> None:
        """Add the row's values as scalars of its step, and flush."""
        valid = validate(row)
        step = int(valid["step"] or 0)
        if self._last_step is None or step <= self._last_step:
            # After a start or a rollback: TensorBoard forgets what older files hold from this step on.
            start = self._event_pb2.SessionLog(status=self._event_pb2.SessionLog.START)
            self._add(step, session_log=start)
        self._last_step = step
        scalars = ((name, value) for name, value in valid.items() if name not in ("step", "time"))
        values = [self._summary_pb2.Summary.Value(tag=name, simple_value=value) for name, value in scalars if value is not None]
        self._add(step, summary=self._summary_pb2.Summary(value=values))
        self._writer.flush()

    def close(self) -> None:
        """Flush and end the writer's thread."""
        self._writer.close()

    def _add(self, step: int, **content: Any) -> None:
        self._writer.add_event(self._event_pb2.Event(wall_time=time.time(), step=step, **content))


class RayMetricsSink:
    """Gauges `rlflow_<name>` with the tags `run` and `algorithm`; Ray's agents export them to Prometheus."""

    def __init__(self, run_name: str, algorithm: str) -> None:
        self._tags = {"run": run_name, "algorithm": algorithm}
        self._gauges: dict[str, Any] = {}

    def write(self, row: Mapping[str, object]) -> None:
        """Set the gauge of every value that the row has; a value that is None keeps its last one."""
        for name, value in validate(row).items():
            if value is not None:
                self._gauge(name).set(value)

    def close(self) -> None:
        """Ray drops the gauges with the process."""

    def _gauge(self, name: str) -> Any:
        if name not in self._gauges:
            from ray.util.metrics import Gauge

            gauge = Gauge(f"rlflow_{name}", description=describe(name) or "", tag_keys=tuple(self._tags))
            gauge.set_default_tags(self._tags)
            self._gauges[name] = gauge
        return self._gauges[name]


class Sinks:
    """Several sinks as one."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = tuple(sinks)

    def write(self, row: Mapping[str, object]) -> None:
        """Record the row in every sink, in order."""
        for sink in self._sinks:
            sink.write(row)

    def close(self) -> None:
        """Close every sink."""
        for sink in self._sinks:
            sink.close()
