"""A stand-in for the package of ModelScope."""

import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def modelscope(monkeypatch) -> dict[str, Path]:
    """Models that can be downloaded: their directory by name. Others are refused, as the package does it."""
    models: dict[str, Path] = {}

    def snapshot_download(name: str) -> str:
        if name not in models:
            raise RuntimeError(f"no {name}\nand more lines")
        return str(models[name])

    package = ModuleType("modelscope")
    package.snapshot_download = snapshot_download  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "modelscope", package)
    monkeypatch.setattr("rlflow.data.modelscope_hub.find_spec", lambda name: package)
    return models
