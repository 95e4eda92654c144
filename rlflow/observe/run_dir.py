"""The run directory: where a run's spec, status, metrics, completions and checkpoints lie.

spec.yaml  resolved.json  status.json  metrics.jsonl  report.html
completions/step-000010.jsonl         of kinds that sample
checkpoints/step-000010/{model/,state/,COMPLETE}
model -> checkpoints/step-000010/model
superseded/20250131-120000/           what a rollback took back
rows.json  result.json                of batch inference: what its files held, counts and speed
"""

import dataclasses
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from rlflow.observe.checkpoints import CheckpointFolder, step_name, step_of
from rlflow.observe.durable import json_line, write_json, write_json_lines, write_text
from rlflow.observe.lock import RunLock
from rlflow.observe.metrics import MetricRow, validate
from rlflow.observe.provenance import differences, provenance

RunState = Literal["starting", "running", "succeeded", "failed", "stopped"]


@dataclasses.dataclass(frozen=True, slots=True)
class RunStatus:
    """What `status.json` holds. Times are seconds since 1970 (UTC)."""

    state: RunState
    step: int = 0
    total_steps: int | None = None
    message: str | None = None
    pid: int = 0
    started: float = 0.0
    time: float = 0.0
    ray_job_id: str | None = None
    best: dict[str, float] | None = None
    """Step and figure of the best checkpoint, where `run.keep_best` asks for it."""


class RunDirectory:
    """One run's folder. Whoever writes to it holds `lock()`; reading needs no lock."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self._checkpoints = CheckpointFolder(self.path / "checkpoints")

    @property
    def name(self) -> str:
        """The run's name: that of its folder."""
        return self.path.name

    @property
    def exists(self) -> bool:
        """Whether a run was created here."""
        return (self.path / "resolved.json").is_file()

    def lock(self) -> RunLock:
        """`with run.lock():` keeps a second driver from writing here; raises `UserError` if it is taken."""
        self.path.mkdir(parents=True, exist_ok=True)
        return RunLock(self.path / ".lock")

    def check_lock(self) -> None:
        """Raises `UserError` if a driver is writing this run."""
        RunLock(self.path / ".lock").check()

    @property
    def has_succeeded(self) -> bool:
        """Whether the run was done to its end."""
        status = self.read_status() if self.exists else None
        return status is not None and status.state == "succeeded"

    def create(self, spec_yaml: str, resolved: Mapping[str, Any]) -> None:
        """Write the user's spec as it was, and the resolved one with the versions that this process runs."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / "spec.yaml", spec_yaml)
        write_json(self.path / "resolved.json", {"spec": dict(resolved), **provenance()})

    def read_resolved(self) -> dict[str, Any]:
        """`resolved.json`: `spec`, `versions`, `git_revision`, `python`."""
        return json.loads((self.path / "resolved.json").read_text(encoding="utf-8"))

    def spec_differences(self, resolved: Mapping[str, Any]) -> list[str]:
        """Dotted paths of the fields in which `resolved` differs from the spec this run began with."""
        return differences(self.read_resolved()["spec"], dict(resolved))

    def write_status(self, state: RunState, **fields: Any) -> None:
        """Replace `status.json`. `fields` are those of `RunStatus`; what is not given keeps its last value.

        `starting` begins anew: it forgets the earlier message and sets the starting time.
        """
        now = time.time()
        last = self.read_status()
        if state == "starting" or last is None:
            last = RunStatus(state, step=last.step if last else 0, started=now)
        status = dataclasses.replace(last, **{"pid": os.getpid(), "time": now, **fields, "state": state})
        write_json(self.path / "status.json", dataclasses.asdict(status))

    def read_status(self) -> RunStatus | None:
        """The last status; None before the first."""
        path = self.path / "status.json"
        return RunStatus(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write `result.json`: what a finished run that trains nothing has to show."""
        write_json(self.path / "result.json", dict(result))

    def read_result(self) -> dict[str, Any] | None:
        """What `write_result` wrote; None if it did not."""
        path = self.path / "result.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def write_rows(self, digests: Mapping[str, str]) -> None:
        """Write `rows.json`: what the files and data sets held that the run's rows are numbered in."""
        write_json(self.path / "rows.json", dict(digests))

    def read_rows(self) -> dict[str, str] | None:
        """What `write_rows` wrote; None if it did not."""
        path = self.path / "rows.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def append_metrics(self, row: Mapping[str, object]) -> MetricRow:
        """Add a step's row to `metrics.jsonl`; return it as written. Raises `ValueError` on unknown names."""
        valid = validate(row)
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json_line(valid))
        return valid

    def read_metrics(self) -> list[MetricRow]:
        """Every row so far; a last line that a killed driver left unfinished does not count."""
        path = self.path / "metrics.jsonl"
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def write_completions(self, step: int, rows: Iterable[Mapping[str, Any]]) -> Path:
        """Write `completions/step-….jsonl`.

        A row holds `prompt`, `completion`, `rewards` (by name), `advantage`, `finish_reason`,
        `weight_version`, `attempt`, and `error` where a reward failed.
        """
        path = self.path / "completions" / f"{step_name(step)}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_lines(path, map(dict, rows))
        return path

    def completion_files(self) -> dict[int, Path]:
        """Step -> its file of completions, in order of steps."""
        found = {step_of(path.stem): path for path in (self.path / "completions").glob("step-*.jsonl")}
        return dict(sorted(found.items()))

    def begin_checkpoint(self, step: int) -> Path:
        """A fresh folder beside the final one, to write `model/` and `state/` into."""
        return self._checkpoints.begin(step)

    def commit_checkpoint(self, step: int, evaluation: Mapping[str, float] | None = None) -> Path:
        """Flush what was written since `begin_checkpoint`, move it into place and mark it COMPLETE."""
        return self._checkpoints.commit(step, evaluation)

    def rotate(self, keep: int, protect: Iterable[int] = ()) -> list[int]:
        """Remove complete checkpoints but the `keep` newest, those in `protect` and the one `model` names.

        Returns the removed steps. Call it after `commit_checkpoint`, never before.
        """
        return self._checkpoints.rotate(keep, {*protect, *self._linked_steps()})

    def remove_states(self, keep: Iterable[int] = ()) -> None:
        """Leave only the model of complete checkpoints, except of these steps."""
        self._checkpoints.remove_states(set(keep))

    def latest_checkpoint(self) -> tuple[int, Path] | None:
        """Step and folder of the newest checkpoint that is marked COMPLETE."""
        return self._checkpoints.latest()

    def newest_model(self) -> Path | None:
        """The model that the run ended with, or that of its newest complete checkpoint; None if there is none yet."""
        if (self.path / "model").is_dir():
            return (self.path / "model").resolve()
        latest = self.latest_checkpoint()
        return None if latest is None else latest[1] / "model"

    def best_checkpoint(self, metric: str, mode: Literal["max", "min"]) -> tuple[int, float] | None:
        """Step and value of the complete checkpoint whose evaluation has the best `metric`; of equal ones the first."""
        return self._checkpoints.best(metric, mode)

    def link_model(self, step: int) -> Path:
        """Point `model` at the model of a complete checkpoint (relative, so that the run may be moved)."""
        assert step in self._checkpoints.complete(), f"checkpoint {step} of {self.path} is not complete"
        beside = self.path / f".model.{os.getpid()}.tmp"
        beside.unlink(missing_ok=True)
        beside.symlink_to(Path("checkpoints", step_name(step), "model"))
        beside.replace(self.path / "model")
        return self.path / "model"

    def supersede_after(self, step: int) -> Path | None:
        """Take back everything after `step`: the loop goes on from there.

        Later metrics rows, completions and checkpoints move to `superseded/<time>/`; unfinished checkpoints
        are removed. Returns that folder, or None where there was nothing to take back.
        """
        self._checkpoints.remove_partial()
        rows = self.read_metrics()
        late_rows = [row for row in rows if (row["step"] or 0) > step]
        late_paths = [path for at, path in self.completion_files().items() if at > step]
        late_paths += [path for at, path in self._checkpoints.complete().items() if at > step]
        target = self._move_away(late_rows, late_paths) if late_rows or late_paths else None
        # Also where nothing is late: the next row must not be glued to half a line of a killed driver.
        write_json_lines(self.path / "metrics.jsonl", [row for row in rows if (row["step"] or 0) <= step])
        return target

    def _move_away(self, rows: list[MetricRow], paths: list[Path]) -> Path:
        target = _fresh_folder(self.path / "superseded")
        write_json_lines(target / "metrics.jsonl", rows)
        if self._linked_steps() & {step_of(path.stem) for path in paths}:
            (self.path / "model").unlink()
        for path in paths:
            (target / path.parent.name).mkdir(exist_ok=True)
            path.rename(target / path.parent.name / path.name)
        return target

    def _linked_steps(self) -> set[int]:
        link = self.path / "model"
        return {step_of(link.readlink().parent.name)} if link.is_symlink() else set()


def _fresh_folder(parent: Path) -> Path:
    """A new folder named after the time; two rollbacks within a second get different ones."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    names = (f"{stamp}{suffix}" for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
    folder = next(parent / name for name in names if not (parent / name).exists())
    folder.mkdir(parents=True)
    return folder
