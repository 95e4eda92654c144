import json
import subprocess
import sys

import pytest

from rlflow.observe.provenance import differences, git_revision


@pytest.mark.parametrize(
    ("stored", "current", "paths"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 1}}, []),
        ({"a": {"b": 1}}, {"a": {"b": 1.5}}, ["a.b"]),
        ({"a": None}, {"a": {"b": 1}}, ["a"]),
        ({"a": 1, "gone": 2}, {"a": 1}, ["gone"]),
        ({"a": [1, {"b": 2}]}, {"a": (1, {"b": 3})}, ["a[1].b"]),
        ({"a": [1]}, {"a": [1, 2]}, ["a"]),
        ({"a": (1, 2)}, {"a": [1, 2]}, []),
        ({"a": 1, "b": [{"c": 2}], "d": 3}, {"a": 2, "b": [{"c": 3}], "d": 3, "e": 0}, ["a", "b[0].c", "e"]),
    ],
)
def test_differences(stored, current, paths):
    assert differences(json.loads(json.dumps(stored)), current) == paths


def test_git_revision_tells_a_changed_tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_revision() is None

    def git(*arguments):
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout

    git("init", "--quiet")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "--quiet", "-m", "first")
    revision = git("rev-parse", "HEAD").strip()
    assert git_revision() == revision
    (tmp_path / "a").write_text("2")
    assert git_revision() == f"{revision}-dirty"


def test_versions_are_read_without_importing_the_packages():
    code = """
import sys
from rlflow.observe.provenance import package_versions
print(package_versions()["torch"], "torch" in sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.endswith(" False\n")
