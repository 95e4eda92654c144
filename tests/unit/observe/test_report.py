import re
from html.parser import HTMLParser

import pytest

from rlflow.observe.report import SHOWN_CHARACTERS, model_label, write_report
from rlflow.observe.run_dir import RunDirectory

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Checks that tags nest, and collects what a reader sees."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)


@pytest.fixture
def run(tmp_path):
    directory = RunDirectory(tmp_path / "quickstart_grpo")
    spec = {"kind": "grpo", "model": {"path": "org/model<7>", "random": None, "from_run": None}}
    directory.create("kind: grpo\n", spec)
    return directory


def train(run, steps):
    for step in range(1, steps + 1):
        run.append_metrics(
            {
                "step": step,
                "reward_mean": step / 10,
                "loss": float("nan") if step == 2 else 0.5,
                "step_seconds": 3.0,
                "generate_seconds": 2.0,
                "learn_seconds": 1.0,
                "idle_seconds": 0.0,
            }
        )


def completion(text, **fields):
    return {"prompt": "<|im_start|>user\n1+1", "completion": text, "rewards": {"accuracy": 1.0}, **fields}


def test_report_of_a_whole_run(run):
    train(run, 3)
    run.write_status("starting", total_steps=3)
    run.write_status("succeeded", step=3)
    run.write_completions(1, [completion("first", advantage=-0.5, finish_reason="stop")])
    run.write_completions(2, [completion("between")])
    run.write_completions(3, [completion("last", rewards={"accuracy": None}, error="ValueError: no answer")])
    path = write_report(run)
    assert path == run.path / "report.html"
    page = Page(path.read_text())
    text = "\n".join(page.texts)
    for part in (
        "quickstart_grpo",
        "grpo",
        "org/model<7>",
        "succeeded",
        "3 of 3",
        "reward_mean",
        "time of a step",
    ):
        assert part in text
    assert "first" in page.texts and "last" in page.texts and "between" not in page.texts
    assert "<|im_start|>user\n1+1" in page.texts and "-0.5" in page.texts
    assert "ValueError: no answer" in text
    assert page.tags.count("svg") == 3  # reward_mean, loss, phases


def test_last_values_name_the_step_they_are_from(run):
    train(run, 2)
    rows = re.findall(r"<tr><td>(\w+)</td>(.*?)</tr>", write_report(run).read_text())
    figures = {name: re.findall(r'"number">([^<]*)<', cells) for name, cells in rows}
    assert figures["reward_mean"] == ["0.1", "0.2", "2"]
    assert figures["loss"] == ["0.5", "0.5", "1"]
    assert "step" not in figures


def test_nothing_is_loaded_from_outside_and_nothing_runs(run):
    train(run, 2)
    run.write_completions(1, [completion('<script>alert(1)</script><img src="http://elsewhere/x.png">')])
    text = write_report(run).read_text()
    page = Page(text)
    assert page.links == [] and "script" not in page.tags and "img" not in page.tags
    assert "url(" not in text and "@import" not in text
    assert "prefers-color-scheme: dark" in text


@pytest.mark.parametrize(("kind", "counted"), [("sft", "Steps"), ("infer", "Rows")])
def test_a_run_without_completions_has_no_part_for_them(tmp_path, kind, counted):
    run = RunDirectory(tmp_path / "other")
    run.create("", {"kind": kind, "model": {"path": "org/model"}})
    run.append_metrics({"step": 3, "tokens_per_second": 5.0})
    run.write_status("running", step=3, total_steps=9)
    texts = Page(write_report(run).read_text()).texts
    assert "Completions" not in texts
    assert texts[texts.index(counted) + 1] == "3 of 9"


def test_dollar_signs_and_long_texts(run):
    run.write_completions(1, [completion("The answer is $59$. " + "x" * 10 * SHOWN_CHARACTERS)])
    text = write_report(run).read_text()
    assert "The answer is $59$." in text
    assert len(text) < 5 * SHOWN_CHARACTERS + 10_000


def test_only_a_part_of_many_completions_is_shown(run):
    run.write_completions(4, [completion(f"completion {i}") for i in range(50)])
    text = write_report(run).read_text()
    assert "8 of 50 logged in completions/step-000004.jsonl" in text
    assert text.count("completion 7<") == 1 and "completion 8<" not in text


def test_report_of_a_run_that_failed_before_its_first_step(run):
    run.write_status("failed", message="data.sources[0].path: no file <x>.jsonl")
    page = Page(write_report(run).read_text())
    assert "data.sources[0].path: no file <x>.jsonl" in page.texts
    assert "No step has finished yet." in page.texts


@pytest.mark.parametrize(
    ("model", "label"),
    [
        ({"path": "org/model"}, "org/model"),
        ({"path": None, "from_run": "quickstart_sft"}, "run quickstart_sft"),
        ({"random": {"config": "qwen3-0.6b"}}, "qwen3-0.6b, random weights"),
        ({"random": {"config": {"model_type": "qwen3"}}}, "qwen3, random weights"),
    ],
)
def test_model_label(model, label):
    assert model_label(model) == label
