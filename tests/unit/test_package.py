"""The package as a whole: what importing costs, which layer imports which, and what is installed."""

import ast
import graphlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import rlflow

ROOT = Path(rlflow.__file__).parents[1]
LAYERS_OF_TOP_FOLDERS = ("actors", "jobs", "rewards")
HEAVY = ("datasets", "deepspeed", "matplotlib", "ray", "torch", "transformers", "vllm")

BELOW = {
    "errors": set(),
    "spec": {"errors"},
    "algorithms": set(),
    "data": {"spec", "errors"},
    "weights": {"errors"},
    "observe": {"spec", "errors"},
    "rewards": {"spec", "errors"},
    "rollout": {"weights", "data", "spec", "errors"},
    "learner": {"algorithms", "weights", "data", "spec", "errors"},
    "actors": {"rollout", "learner", "rewards", "observe", "spec", "errors", "algorithms", "weights", "data"},
    "cluster": {"actors", "observe", "spec", "errors", "algorithms", "rollout.completions"},
    "loops": {"algorithms", "data", "observe", "spec", "errors", "cluster.handles", "rollout.completions"},
    "jobs": {
        *("loops", "cluster", "actors", "learner", "rollout", "rewards", "observe", "weights", "data"),
        *("algorithms", "spec", "errors"),
    },
    "client": {"spec", "errors"},
    "convert": {"spec", "errors"},
    "cli": {"client", "spec", "errors", "jobs", "convert"},
    "__init__": {"rewards.api"},
}
"""Which layer may import which, beside its own modules. `a.b` is one module of layer a."""

BELOW_MODULE = {"cluster.handles": {"algorithms", "spec", "rollout.completions"}, "rollout.completions": set()}
"""What the modules may import that layers above theirs, or beside it, know."""

THIRD_PARTY = {
    "errors": set(),
    "spec": {"pydantic", "yaml"},
    "algorithms": {"torch", "triton"},
    "loops": {"numpy"},
    "convert": {"pydantic", "pydantic_core", "yaml"},
    "cli": {"typer", "rich"},
    "__init__": set(),
}
"""Layers that may import no other library than these."""

ONLY_IN = {
    "vllm": {"rollout"},
    "deepspeed": {"learner"},
    "ray": {"actors", "cluster", "observe", "jobs", "client"},
}
"""Libraries that only these layers know."""


def modules():
    """Every module of the package as (dotted name without `rlflow.`, file)."""
    found = []
    for folder, prefix in [(ROOT / "rlflow", ()), *((ROOT / name, (name,)) for name in LAYERS_OF_TOP_FOLDERS)]:
        for path in sorted(folder.rglob("*.py")):
            inside = path.relative_to(folder)
            if prefix or inside.parts[0] not in LAYERS_OF_TOP_FOLDERS:  # rlflow/actors and so on are symlinks
                parts = (*prefix, *inside.with_suffix("").parts)
                found.append((".".join(parts[:-1] if parts[-1] == "__init__" and parts[1:] else parts), path))
    return found


def imports(path):
    """Names of all modules that a file imports, at its top or inside a function; `from a import b` gives a.b."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def allows(permitted, target):
    return any(target == name or target.startswith(f"{name}.") for name in permitted)


MODULES = modules()


def test_all_modules_are_seen():
    names = {name for name, _ in MODULES}
    assert {"__init__", "cli", "spec", "spec.load", "rewards", "actors.learner", "jobs"} <= names
    assert {name.partition(".")[0] for name in names} == set(BELOW), "a layer that the table does not list"


@pytest.mark.parametrize(("name", "path"), MODULES, ids=[name for name, _ in MODULES])
def test_a_module_imports_only_from_layers_below(name, path):
    layer = name.partition(".")[0]
    permitted = BELOW_MODULE.get(name, BELOW[layer] | {layer})
    for imported in imports(path):
        top, _, target = imported.partition(".")
        if top == "rlflow":
            # a public name of the package itself, or a module of a layer
            assert target in rlflow.__all__ or allows(permitted, target), f"{name} imports {imported}"
            continue
        if top not in sys.stdlib_module_names:
            assert top in THIRD_PARTY.get(layer, {top}), f"{name} imports {imported}"
            assert layer in ONLY_IN.get(top, {layer}), f"{name} imports {imported}"


def test_layers_form_no_circle():
    order = list(graphlib.TopologicalSorter(BELOW | BELOW_MODULE | {"rewards.api": set()}).static_order())
    assert order.index("spec") < order.index("learner") < order.index("cluster") < order.index("jobs")


# ---- importing


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


IMPORT = f"""
import json, sys
import rlflow
rlflow.reward, rlflow.RewardSample
print(json.dumps([name for name in {HEAVY} if name in sys.modules]))
"""


def test_importing_the_package_is_light():
    assert json.loads(python(IMPORT).stdout) == []


@pytest.mark.parametrize("name", LAYERS_OF_TOP_FOLDERS)
def test_a_top_level_folder_is_refused_under_its_short_name(name):
    result = python(f"import {name}")
    assert result.returncode == 1
    assert f"ImportError: import rlflow.{name}, not {name}" in result.stderr
    assert python(f"import rlflow.{name}").returncode == 0


def public_modules():
    return [(name, path) for name, path in MODULES if "__all__" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize(("name", "path"), public_modules(), ids=[name for name, _ in public_modules()])
def test_public_names_are_sorted(name, path):
    lists = [
        ast.literal_eval(node.value)
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__"
    ]
    assert lists == [sorted(set(lists[0]))]


def test_public_names_exist():
    for name in rlflow.__all__:
        assert getattr(rlflow, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'rewrad'"):
        rlflow.rewrad  # noqa: B018


def test_the_version_is_that_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert rlflow.__version__ == project["version"]


# ---- installing


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the tree without network."""
    tree = tmp_path_factory.mktemp("tree")
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("rlflow", *LAYERS_OF_TOP_FOLDERS):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", tree)
    (tree / "README.md").write_text("rlflow", encoding="utf-8")
    code = "from setuptools import build_meta; print(build_meta.build_wheel('out'))"
    result = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    [path] = (tree / "out").glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_one_top_level_name(wheel):
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"rlflow"}


def test_the_wheel_holds_every_module_and_data_file(wheel):
    installed = set(wheel.namelist())
    data = [
        path.relative_to(ROOT)
        for pattern in ("*.yaml", "*.json", "*.jinja", "*.html")
        for name in ("rlflow", *LAYERS_OF_TOP_FOLDERS)
        for path in sorted((ROOT / name).rglob(pattern))
    ]
    assert data, "specs and chat templates"
    for path in [path.relative_to(ROOT) for _, path in MODULES] + data:
        name = str(path) if path.parts[0] == "rlflow" else f"rlflow/{path}"
        assert name in installed
