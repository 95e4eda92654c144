"""Where models and adapters lie that a user names by a directory, a hub id or a run."""

import shutil
from dataclasses import asdict
from pathlib import Path

from rlflow.data.hugging_face_hub import find_hub_model, may_be_id
from rlflow.data.modelscope_hub import check_modelscope, download_modelscope_model
from rlflow.errors import SpecError
from rlflow.observe.durable import write_json
from rlflow.observe.run_dir import RunDirectory
from rlflow.spec.sources import Hub

ADAPTER_CONFIG = "adapter_config.json"
CHECK_FILE = "merge_check.json"


def find_model(name: str, runs: Path, hub: Hub = "huggingface") -> str:
    """The directory of a run's model, a directory, or an id of the Hugging Face hub; a model of ModelScope is downloaded.

    Raises:
        SpecError: there is no such model, or its hub cannot be reached.
    """
    if (local := _local_model(name, runs)) is not None:
        return local
    try:
        return fetch_from_hub(name, hub, "model")
    except SpecError as error:
        raise SpecError(f"{error}; no run in {runs} has this name") from None


def _local_model(name: str, runs: Path) -> str | None:
    """The directory of a run's model, or a directory; None for what may be the id of a hub. Raises `SpecError` for all else."""
    run = find_run(name, runs)
    if run is not None:
        newest = run.newest_model()
        if newest is None:
            raise SpecError(f"model: the run {run.path} has no model yet; let it run on")
        return str(newest)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise SpecError(f"model: {name} holds no config.json")
        return str(path.absolute())
    if not may_be_id(name):
        raise SpecError(f"model: {name} is no run in {runs}, no directory and no hub id")
    return None


def check_hub(hub: str, flag: str) -> Hub:
    """The hub that a flag names. Raises `SpecError` if there is none of this name, or its package is missing."""
    if hub not in ("huggingface", "modelscope"):
        raise SpecError(f"{flag}: {hub!r} is neither huggingface nor modelscope")
    if hub == "modelscope":
        check_modelscope(flag)
    return hub


def fetch_from_hub(path: str, hub: Hub, field: str, *, revision: str | None = None) -> str:
    """A directory, as it is; else the id that the Hugging Face hub has, or the directory to which a model of ModelScope was
    downloaded (at `revision`). Raises `SpecError` naming the `field` of the model.
    """
    if Path(path).is_dir():
        return path
    return download_modelscope_model(path, revision, field) if hub == "modelscope" else find_hub_model(path, field)


def find_adapter(name: str, runs: Path) -> Path:
    """The directory of adapters: as given, or of a run's latest checkpoint. Raises `SpecError`."""
    path = Path(name).expanduser()
    if (path / ADAPTER_CONFIG).is_file():
        return path.absolute()
    run = find_run(name, runs)
    latest = run.latest_checkpoint() if run else None
    if latest is not None and (latest[1] / "adapter" / ADAPTER_CONFIG).is_file():
        return latest[1] / "adapter"
    raise SpecError(f"adapter: {name} is neither a directory with {ADAPTER_CONFIG} nor a run in {runs} that trained adapters")


def find_run(name: str, runs: Path) -> RunDirectory | None:
    """The run of that name, or in that directory."""
    candidates = [RunDirectory(runs / name), RunDirectory(Path(name).expanduser())]
    return next((run for run in candidates if run.exists), None)


def merged_model(base: str, adapter: str, dtype: str | None, runs: Path, directory: Path) -> str:
    """A directory with the adapters merged into the model; made once, in a Ray task because it loads models."""
    import ray
    from ray.exceptions import RayTaskError

    if not (directory / CHECK_FILE).is_file():
        found = find_adapter(adapter, runs)
        shutil.rmtree(directory, ignore_errors=True)
        try:
            check = ray.get(ray.remote(merge_to).options(num_cpus=0).remote(base, found, directory, dtype, None))
        except RayTaskError as error:
            raise error.cause from None
        write_json(directory / CHECK_FILE, check)
    return str(directory)


def merge_to(base: str, adapter: Path, directory: Path, dtype: str | None, max_shard_size: str | None) -> dict[str, float]:
    """Merge, with the tokenizer; returns how the check went, by the names of `MergeCheck`."""
    from transformers import AutoTokenizer

    from rlflow.learner.merge import merge_adapter

    check = asdict(merge_adapter(base, adapter, directory, dtype=dtype, max_shard_size=max_shard_size))
    AutoTokenizer.from_pretrained(tokenizer_source(base, adapter)).save_pretrained(directory)
    return check


def tokenizer_source(base: str, adapter: Path) -> str:
    """The tokenizer with the chat template that the adapters were trained with: beside them, of their run, else the base's."""
    places = (adapter, adapter.parent / "model")
    return next((str(place) for place in places if (place / "tokenizer_config.json").is_file()), base)
