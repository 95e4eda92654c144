"""Docs and deploy files say what is: their specs validate, their code runs, their commands, links and metrics exist."""

import io
import json
import re
import runpy
import tomllib
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import yaml
from rich.console import Console

import rlflow
from rlflow.cli import app
from rlflow.jobs.plan import plan
from rlflow.observe.metrics import describe
from rlflow.rewards import RewardSample, RewardScorer
from rlflow.spec.load import parse_job, read_yaml
from rlflow.spec.rewards import PluginSpec

ROOT = Path(rlflow.__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MANIFESTS = sorted([*(ROOT / "deploy").rglob("*.yaml"), *(ROOT / "deploy").rglob("*.yml")])
DASHBOARD = ROOT / "deploy" / "grafana" / "rlflow.json"
PLAN_COMMAND = "rlflow plan math.yaml --assume-gpus 8x80"
BASE_JOB = {
    "kind": "grpo",
    "run": {"name": "docs"},
    "model": {"path": "org/model"},
    "data": {"sources": ["train.jsonl"]},
    "rewards": [{"type": "accuracy"}],
    "steps": 1,
}


def blocks(page: Path, language: str) -> list[str]:
    """The page's fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def all_blocks(language: str) -> list:
    found = [(page, number, text) for page in PAGES for number, text in enumerate(blocks(page, language), start=1)]
    assert found, f"no page has a block of {language}"
    return [pytest.param(text, id=f"{page.name}-{number}") for page, number, text in found]


def test_field_tables_are_up_to_date():
    page = (ROOT / "docs" / "specs.md").read_text(encoding="utf-8")
    generator = runpy.run_path(str(ROOT / "docs" / "generate_specs.py"), run_name="generate_specs")
    assert generator["updated_page"](page) == page, "run: python docs/generate_specs.py"


def test_field_tables_give_types_defaults_and_working_links():
    page = (ROOT / "docs" / "specs.md").read_text(encoding="utf-8")
    tables = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert "| `temperature` | number > 0 | `1.0` |" in tables["`rollout`"]
    assert "| `name` | text | required |" in tables["`run`"]
    assert "| `type` | `plugin` | required |" in tables["`rewards` of `type: plugin`"]
    assert "| `steps` | integer ≥ 1 or null | `null` |" in tables["Every job that trains"]
    assert "`steps`" not in tables["`kind: grpo`"]
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in tables}
    assert set(re.findall(r"\(#([\w-]+)\)", page)) <= anchors


@pytest.mark.parametrize("text", all_blocks("yaml"))
def test_specs_in_pages_validate(text, tmp_path):
    file = tmp_path / "spec.yaml"
    file.write_text(text, encoding="utf-8")
    document = read_yaml(file)
    parse_job(document if "kind" in document else {**BASE_JOB, **document})


@pytest.mark.parametrize("text", all_blocks("python"))
def test_python_in_pages_compiles(text):
    compile(text, "page", "exec")


@pytest.mark.parametrize(("tokens", "finish_reason", "value"), [(12, "stop", 1.0), (300, "stop", 0.0), (12, "length", None)])
def test_readme_plugin_gives_the_documented_values(tokens, finish_reason, value, tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "12 tokens give 1.0, 300 tokens give 0.0, and a completion that was cut gets no reward" in readme
    (plugin,) = blocks(ROOT / "README.md", "python")
    (tmp_path / "my_rewards.py").write_text(plugin, encoding="utf-8")
    sample = RewardSample(
        prompt_id=0,
        sample_index=0,
        messages=[{"role": "user", "content": "1+1?"}],
        prompt="1+1?",
        completion="2",
        completion_tokens=tokens,
        completion_token_ids=[17] * tokens,
        finish_reason=finish_reason,
        columns={"solution": "2"},
    )
    spec = PluginSpec(target="my_rewards.py:short_answer", weight=0.2)
    with RewardScorer([spec], max_completion_tokens=512, cwd=str(tmp_path)) as scorer:
        (score,) = scorer.score([sample])
    assert score.by_name == {"short_answer": value}
    assert score.total == (None if value is None else 0.2 * value)


def test_rewards_page_example_prints_what_it_shows(tmp_path, monkeypatch):
    page = ROOT / "docs" / "rewards.md"
    plugins, trial = blocks(page, "python")
    (tmp_path / "my_rewards.py").write_text(plugins, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with redirect_stdout(io.StringIO()) as printed:
        exec(compile(trial, "trial", "exec"), {"__name__": "trial"})
    assert printed.getvalue() == blocks(page, "text")[-1]


def test_plan_of_the_readme_spec_prints_what_the_page_shows(tmp_path, monkeypatch):
    (shown,) = [text for text in blocks(ROOT / "docs" / "clusters.md", "text") if "placement" in text]
    (spec,) = [text for text in blocks(ROOT / "README.md", "yaml") if text.startswith("# math.yaml")]
    (plugin,) = blocks(ROOT / "README.md", "python")
    monkeypatch.chdir(tmp_path)
    Path("math.yaml").write_text(spec, encoding="utf-8")
    Path("my_rewards.py").write_text(plugin, encoding="utf-8")
    Path("train.jsonl").write_text('{"prompt": "1+1?", "solution": "2"}\n', encoding="utf-8")
    planned = plan("math.yaml", [], "8x80")
    output = io.StringIO()
    Console(file=output, width=100).print(planned.render())
    printed = [line.rstrip() for line in output.getvalue().splitlines()]
    begin = next(number for number, line in enumerate(printed) if "placement on" in line)
    assert planned.problems == []
    assert printed[begin:] == shown.splitlines(), f"put the new output of `{PLAN_COMMAND}` into docs/clusters.md"


def test_commands_in_pages_exist():
    verbs = {command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands}
    named = {verb for page in PAGES for text in blocks(page, "bash") for verb in re.findall(r"\brlflow ([a-z]+)", text)}
    assert {"run", "plan", "submit"} <= named <= verbs


def test_make_targets_and_files_in_pages_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    targets = set(re.findall(r"`?make ([a-z]+)`", text)) | set(re.findall(r"^make ([a-z]+)", text, re.MULTILINE))
    assert "quickstart" in targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    files = set(re.findall(r"\b((?:rlflow|jobs|actors|rewards|deploy)/[\w./-]+\.\w+)", text))
    assert len(files) > 20
    assert [file for file in sorted(files) if not (ROOT / file).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)(?:#[\w-]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), f"{page.name} links {link}"


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.name)
def test_manifests_parse(file):
    documents = list(yaml.safe_load_all(file.read_text(encoding="utf-8")))
    assert documents and all(isinstance(document, dict) for document in documents)


def test_rayjob_uses_the_cluster_of_raycluster_with_tokens_and_a_shared_volume():
    folder = ROOT / "deploy" / "kuberay"
    claim, cluster = yaml.safe_load_all((folder / "raycluster.yaml").read_text(encoding="utf-8"))
    job = yaml.safe_load((folder / "rayjob.yaml").read_text(encoding="utf-8"))
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    for pod in (group["template"]["spec"] for group in groups):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        (container,) = pod["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts.keys() == volumes.keys() and mounts["shared"] == "/shared"
        assert volumes["shared"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert {"name": "metrics", "containerPort": 8080} in container["ports"]


def test_gpu_pins_cover_the_package_and_agree_with_the_manifests():
    lines = (ROOT / "deploy" / "requirements-gpu.txt").read_text(encoding="utf-8")
    pins = {name.lower(): version for name, version in re.findall(r"^([\w-]+)(?:\[.+\])?==(\S+)$", lines, re.MULTILINE)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["gpu"], *extras["tasks"]]
    assert {re.split(r"[\[<>=]", requirement)[0] for requirement in needed} <= pins.keys()
    _, cluster = yaml.safe_load_all((ROOT / "deploy" / "kuberay" / "raycluster.yaml").read_text(encoding="utf-8"))
    assert cluster["spec"]["rayVersion"] == pins["ray"]


def test_image_copies_what_exists():
    lines = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8").splitlines()
    sources = [source for line in lines if line.startswith("COPY ") for source in line.split()[1:-1]]
    assert {"pyproject.toml", "rlflow", "actors", "rewards", "jobs"} <= set(sources)
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_dashboard_shows_metrics_of_the_catalogue():
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    names = {name for text in expressions for name in re.findall(r"\bray_rlflow_(\w+)\{", text)}
    assert len(names) > 20
    assert [name for name in sorted(names) if describe(name) is None] == []
    (pattern,) = {match for text in expressions for match in re.findall(r'__name__=~"(.+?)"', text)}
    assert re.fullmatch(pattern, "ray_rlflow_reward_accuracy_mean")
    assert not re.fullmatch(pattern, "ray_rlflow_reward_mean")
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_metrics_in_pages_are_in_the_catalogue():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    names = set(re.findall(r"\bray_rlflow_(\w+)\b(?![_.])", text)) - {"reward_"}
    assert {"reward_mean", "sampler_logprob_abs_diff_mean"} <= names
    assert [name for name in sorted(names) if describe(name) is None] == []
