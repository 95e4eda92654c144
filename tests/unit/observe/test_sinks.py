import json
import subprocess
import sys

import pytest

from rlflow.observe.run_dir import RunDirectory
from rlflow.observe.sinks import JsonlSink, RayMetricsSink, Sinks, TensorBoardSink


def scalars(directory, tag):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_rows_reach_every_sink(tmp_path):
    run = RunDirectory(tmp_path)
    sinks = Sinks([JsonlSink(run), TensorBoardSink(tmp_path / "tensorboard")])
    for step in (1, 2):
        sinks.write({"step": step, "time": 1.7e9, "loss": step / 4, "kl_mean": float("nan")})
    sinks.close()
    assert [row["loss"] for row in run.read_metrics()] == [0.25, 0.5]
    assert scalars(tmp_path / "tensorboard", "loss") == [(1, 0.25), (2, 0.5)]
    with pytest.raises(KeyError):
        scalars(tmp_path / "tensorboard", "kl_mean")


def test_tensorboard_forgets_what_a_rollback_or_a_restart_took_back(tmp_path):
    first = TensorBoardSink(tmp_path)
    for step in (1, 2, 3, 2):
        first.write({"step": step, "loss": float(step)})
    assert scalars(tmp_path, "loss") == [(1, 1.0), (2, 2.0)]
    first.close()


def test_tensorboard_is_written_without_torch(tmp_path):
    code = f"""
import sys
from pathlib import Path
from rlflow.observe.sinks import TensorBoardSink
sink = TensorBoardSink(Path({str(tmp_path)!r}))
sink.write({{"step": 1, "loss": 0.5}})
sink.close()
print([name for name in ("torch", "tensorflow", "ray") if name in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
    assert scalars(tmp_path, "loss") == [(1, 0.5)]


def test_gauges_carry_the_catalogue_name_and_tags():
    from ray.util.metrics import Gauge

    sink = RayMetricsSink("my_run", "grpo")
    sink.write({"step": 1, "loss": 0.5, "kl_mean": None})
    gauges = sink._gauges
    assert sorted(gauges) == ["loss", "step"]
    assert all(isinstance(gauge, Gauge) for gauge in gauges.values())
    assert gauges["loss"].info["name"] == "rlflow_loss"
    assert gauges["loss"].info["default_tags"] == {"run": "my_run", "algorithm": "grpo"}
    sink.close()


def test_a_bad_row_is_in_no_sink(tmp_path):
    run = RunDirectory(tmp_path)
    with pytest.raises(ValueError, match="lss"):
        Sinks([JsonlSink(run)]).write({"step": 1, "lss": 0.5})
    assert run.read_metrics() == []


def test_lines_are_whole_objects(tmp_path):
    JsonlSink(RunDirectory(tmp_path)).write({"step": 1, "reward_mean": float("inf")})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "reward_mean": None}
