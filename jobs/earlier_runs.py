"""What a job takes from earlier runs: the answers that they wrote, and what kind of run it must have been."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rlflow.errors import SpecError
from rlflow.observe.run_dir import RunDirectory
from rlflow.spec.data import DataSpec
from rlflow.spec.jobs import InferJob, Job, RewardModelJob, RolloutJob
from rlflow.spec.rewards import ModelRewardSpec
from rlflow.spec.sources import FileSource, RunSource


def output_path(job: InferJob) -> Path:
    """Where a job of batch inference writes its answers."""
    return _output(job.infer.output, Path(job.run.dir) / job.run.name)


def with_answers(job: Job) -> DataSpec:
    """The job's data with the files that earlier runs wrote in the place of the runs. Raises `SpecError` if there is none."""
    sources = tuple(
        _answers(source, Path(job.run.dir), f"data.sources[{index}]") if isinstance(source, RunSource) else source
        for index, source in enumerate(job.data.sources)
    )
    return job.data.model_copy(update={"sources": sources})


def waits_for_answers(job: Job, earlier_runs: Sequence[str]) -> bool:
    """Whether the job's rows are still to be written, by one of `earlier_runs`."""
    return any(isinstance(source, RunSource) and source.from_run in earlier_runs for source in job.data.sources)


def chain_problems(job: Job, earlier: Sequence[Job]) -> Iterator[str]:
    """What the job expects of those that run before it, and they are not."""
    kinds = {before.run.name: before for before in earlier}
    for index, source in enumerate(job.data.sources):
        if isinstance(source, RunSource) and not isinstance(kinds.get(source.from_run), InferJob | None):
            yield f"data.sources[{index}].from_run: {source.from_run} is a job of kind {kinds[source.from_run].kind}, not infer"
    for index, reward in enumerate(job.rewards if isinstance(job, RolloutJob | InferJob) else ()):
        before = kinds.get(reward.from_run or "") if isinstance(reward, ModelRewardSpec) else None
        if before is not None and not isinstance(before, RewardModelJob):
            yield f"rewards[{index}].from_run: {before.run.name} is a job of kind {before.kind}, not rm"


def _answers(source: RunSource, runs: Path, field: str) -> FileSource:
    directory = runs / source.from_run
    spec = RunDirectory(directory).read_resolved()["spec"] if RunDirectory(directory).exists else {}
    path = _output(spec["infer"]["output"], directory) if "infer" in spec else directory / "output.jsonl"
    if not path.is_file():
        raise SpecError(f"{field}.from_run: {source.from_run} has written no answers in {runs}; run that job of kind infer first")
    return FileSource(path=str(path), **source.model_dump(include={"sample", "columns", "held_out"}))


def _output(output: str | None, directory: Path) -> Path:
    return Path(output or directory / "output.jsonl").expanduser().absolute()
