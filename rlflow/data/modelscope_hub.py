"""Data sets and models of ModelScope, through its own package, which is optional."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlflow.errors import DataError, SpecError

if TYPE_CHECKING:
    from datasets import Dataset


def check_modelscope(field: str) -> None:
    """Raise `SpecError` if the package is missing; `field` is the field or flag that asks for it."""
    if find_spec("modelscope") is None:
        raise SpecError(f"{field}: ModelScope needs its package, which is not installed: pip install modelscope")


def load_modelscope_dataset(name: str, subset: str | None, split: str, cache_dir: Path, field: str) -> "Dataset":
    """A split of a data set. Raises `DataError` naming the source's `field`."""
    check_modelscope(f"{field}.hub")
    try:
        from modelscope.msdatasets import MsDataset  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        hint = f"{error.name} is missing: pip install 'modelscope[datasets]'"
        raise DataError(f"{field}.hub: the data sets of ModelScope's package need more than its core; {hint}") from None
    options: dict[str, Any] = {"subset_name": subset} if subset else {}
    try:
        loaded = MsDataset.load(name, split=split, cache_dir=str(cache_dir), **options)
        # Newer releases return the data set itself for repositories in the usual layout.
        return loaded.to_hf_dataset() if hasattr(loaded, "to_hf_dataset") else loaded
    except Exception as error:  # the package's errors have no common base
        reason = str(error).partition("\n")[0]
        raise DataError(f"{field}.id: cannot load {name}, split {split}, from ModelScope: {reason}") from None


def download_modelscope_model(name: str, revision: str | None, field: str) -> str:
    """The directory of a model, downloaded if it is not there yet.

    Raises:
        SpecError: it cannot be had, or the package is missing; names the model's `field`.
    """
    check_modelscope(field)
    from modelscope import snapshot_download  # pyright: ignore[reportMissingImports]

    try:
        return snapshot_download(name, **({"revision": revision} if revision else {}))
    except Exception as error:  # the package's errors have no common base
        reason = str(error).partition("\n")[0]
        raise SpecError(f"{field}: cannot download {name} from ModelScope: {reason}") from None
