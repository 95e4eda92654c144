import os
import re
import subprocess
import sys
from pathlib import Path

from rlflow.rewards import RewardScorer
from rlflow.spec.rewards import PluginSpec

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "rewards.md").read_text()


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_page_shows_what_its_code_prints(tmp_path):
    plugins, trial = code_blocks("python")
    (tmp_path / "my_rewards.py").write_text(plugins)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    shown = subprocess.run(
        [sys.executable, "-c", trial],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert [shown.stdout] == code_blocks("text")


def test_every_plugin_of_the_page_works(tmp_path, make_sample):
    (tmp_path / "my_rewards.py").write_text(code_blocks("python")[0])
    names = ["short_answer", "share", "judged", "same_words"]
    specs = [PluginSpec(target=f"my_rewards.py:{name}") for name in names]
    specs.append(PluginSpec(target="my_rewards.py:LongerThan", options={"limit": 3}))
    with RewardScorer(specs, max_completion_tokens=100, cwd=str(tmp_path)) as scorer:
        (score,) = scorer.score([make_sample("two because", solution="because two")])
    assert score.by_name == {
        "short_answer": 1.0,
        "share_of_tokens": 1.0,
        "judged": 1.0,
        "same_words": 1.0,
        "LongerThan": 1.0,
    }
