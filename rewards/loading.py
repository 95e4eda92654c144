"""Finding and importing the object a plugin's `target` names."""

import importlib
import importlib.util
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from rlflow.errors import RewardPluginError

ENTRY_POINT_GROUP = "rlflow.rewards"


def load_target(target: str, cwd: str) -> Any:
    """Import `path/file.py:name`, `package.module:name` or an entry point of group `rlflow.rewards`.

    Paths and modules are looked up from `cwd` too. Raises RewardPluginError if the file, name or entry point
    does not exist; whatever importing raises goes through.
    """
    place, _, name = target.rpartition(":")
    if not place:
        return _load_entry_point(name)
    module = _import_file(Path(cwd, place)) if place.endswith(".py") else _import_module(place, cwd)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise RewardPluginError(f"{place} has no '{part}' (it has: {_list_public(module)})")
        found = getattr(found, part)
    return found


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise RewardPluginError(f"there is no file {path}")
    make_importable(str(path.parent))
    # Prefixed, so that a plugin called json.py does not replace the real json for everybody else.
    module_spec = importlib.util.spec_from_file_location(f"rlflow_plugin_{path.stem}", path)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module
    module_spec.loader.exec_module(module)
    return module


def _import_module(name: str, cwd: str) -> ModuleType:
    make_importable(cwd)
    return importlib.import_module(name)


def make_importable(folder: str) -> None:
    """Let modules of a folder be imported, after all others."""
    if folder not in sys.path:
        sys.path.append(folder)


def _load_entry_point(name: str) -> Any:
    offered = entry_points(group=ENTRY_POINT_GROUP)
    if name not in offered.names:
        names = ", ".join(sorted(offered.names)) or "none"
        raise RewardPluginError(
            f"no installed package offers it as an entry point of group {ENTRY_POINT_GROUP} "
            f"(offered: {names}); a file is written path/file.py:name"
        )
    return offered[name].load()


def _list_public(module: ModuleType) -> str:
    own = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    return ", ".join(own) or "nothing of its own"
