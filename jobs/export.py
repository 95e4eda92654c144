"""`rlflow export`: a finished model as a directory that transformers and vLLM load, and on a hub."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from rlflow.data.hugging_face_hub import retried, transport_errors
from rlflow.errors import HubError, SpecError
from rlflow.jobs.adapters import (
    ADAPTER_CONFIG,
    check_hub,
    fetch_from_hub,
    find_adapter,
    find_model,
    find_run,
    merge_to,
    tokenizer_source,
)
from rlflow.spec.sources import Hub


@dataclass(frozen=True, slots=True)
class Source:
    """What is exported: a model, adapters, or both."""

    model: str | None
    """Directory or hub id."""
    adapter: Path | None


def check_options(push: str | None, hub: str, token: str | None, private: bool, dtype: str | None) -> None:
    """Raises `SpecError` for what no export can mean, before anything is written."""
    check_hub(hub, "--hub")
    if push is None and (token is not None or private or hub != "huggingface"):
        raise SpecError("--token, --private, --hub: say where to with --push REPO")
    if dtype not in (None, "bfloat16", "float16", "float32"):
        raise SpecError(f"--dtype: {dtype!r} is none of bfloat16, float16 and float32")


def check_as_it_is(source: str, push: str | None, **changes: object) -> None:
    """Raises `SpecError` if `source` cannot be pushed as it is: no directory of a model or adapters, or to be changed."""
    if push is None:
        raise SpecError("--output: missing; or push a directory as it is, with --push REPO")
    folder = Path(source).expanduser()
    if not any((folder / name).is_file() for name in ("config.json", ADAPTER_CONFIG)):
        raise SpecError(f"--output: missing; only a directory of a model or of adapters can be pushed as it is, {source} is none")
    given = [f"--{name.replace('_', '-')}" for name, value in changes.items() if value is not None]
    if given:
        raise SpecError(f"{', '.join(given)}: say where the changed model is to be written, with --output DIR")


def export(
    source: str,
    output: Path,
    *,
    source_hub: Hub = "huggingface",
    adapter: str | None = None,
    merge: bool | None = None,
    dtype: str | None = None,
    max_shard_size: str | None = None,
    runs: Path = Path("runs"),
) -> list[str]:
    """Write a model directory and return what to tell the user, line by line. Raises `UserError`.

    A run's model, whose adapters training has merged, is copied; `merge` merges its adapters anew, and checks. Adapters given
    otherwise are merged, unless `merge` is False: then they are copied alone.
    """
    found = _find(source, source_hub, adapter, merge, runs)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise SpecError(f"--output: {output} exists and is not an empty directory; choose another, or remove it")
    beside = output.with_name(f".{output.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.parent.mkdir(parents=True, exist_ok=True)
    try:
        lines = _write(found, beside, dtype, max_shard_size)
        shutil.rmtree(output, ignore_errors=True)
        beside.rename(output)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    files = [path for path in output.rglob("*") if path.is_file()]
    return [*lines, f"written: {output} ({len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:,.1f} MB)"]


def _find(source: str, hub: Hub, adapter: str | None, merge: bool | None, runs: Path) -> Source:
    if adapter is not None:
        found = find_adapter(adapter, runs)
        return Source(None, found) if merge is False else Source(find_model(source, runs, hub), found)
    run = find_run(source, runs)
    if run is not None and merge is None:
        return Source(find_model(source, runs), None)
    if run is None and not (Path(source).expanduser() / ADAPTER_CONFIG).is_file():
        if merge is not None:
            raise SpecError(f"--merge: {source} has no adapters; name them with --adapter")
        return Source(find_model(source, runs, hub), None)
    found = find_adapter(source, runs)
    return Source(None if merge is False else _base_of(found, hub), found)


def _base_of(adapter: Path, hub: Hub) -> str:
    base = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise SpecError(f"{adapter / ADAPTER_CONFIG} names no base model; give it: rlflow export MODEL --adapter {adapter}")
    if base.startswith(("/", ".")) and not Path(base).is_dir():
        raise SpecError(f"{adapter}: its base model {base} is not here; give it: rlflow export MODEL --adapter {adapter}")
    return fetch_from_hub(base, hub, f"base model of {adapter}")


def _write(found: Source, directory: Path, dtype: str | None, max_shard_size: str | None) -> list[str]:
    if found.adapter is None:
        assert found.model is not None
        _write_model(found.model, directory, dtype, max_shard_size)
        return []
    if found.model is None:
        if dtype or max_shard_size:
            raise SpecError("--dtype, --max-shard-size: adapters alone are copied as they are")
        shutil.copytree(found.adapter, directory)
        _copy_tokenizer(tokenizer_source(str(found.adapter), found.adapter), directory)
        return []
    check = merge_to(found.model, found.adapter, directory, dtype, max_shard_size)
    return [
        f"merged {found.adapter} into {found.model}: log-probabilities of a probe differ from those with the adapters beside it "
        f"by {check['mean_difference']:.2g} on average, {check['max_difference']:.2g} at most "
        f"(the adapters themselves change them by {check['adapter_effect']:.2g})"
    ]


def _write_model(model: str, directory: Path, dtype: str | None, max_shard_size: str | None) -> None:
    if dtype is None and max_shard_size is None:
        shutil.copytree(_local(model), directory)
        return
    from rlflow.learner.merge import rewrite_model

    rewrite_model(model, directory, dtype=dtype, max_shard_size=max_shard_size)
    _copy_tokenizer(model, directory)


def _copy_tokenizer(source: str, directory: Path) -> None:
    """The tokenizer with its chat template, if there is one at the source."""
    from transformers import AutoTokenizer

    if Path(source).is_dir() and not (Path(source) / "tokenizer_config.json").is_file():
        return
    AutoTokenizer.from_pretrained(source).save_pretrained(directory)


def _local(model: str) -> Path:
    """The directory of a model, downloaded if it is on the hub."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    try:
        return Path(retried(lambda: snapshot_download(model)))
    except (OSError, *transport_errors()) as error:
        raise HubError(f"model: cannot download {model}: {' '.join(str(error).split())}") from None
