"""`rlflow data` as its user sees it, through a pipe."""

import json
from functools import partial

import pytest
import yaml
from rich.console import Console

from rlflow.jobs.preview import preview_specs

CHARACTERS = "0123456789+-= <>/abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def preview(tmp_path, monkeypatch, capsys):
    """Write rows and a spec, preview it; returns the exit code and what was printed."""
    monkeypatch.chdir(tmp_path)

    def show(rows, kind="sft", count=2, overrides=(), **data):
        lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        (tmp_path / "rows.jsonl").write_text("".join(f"{line}\n" for line in lines))
        spec = {
            "kind": kind,
            "run": {"name": "try"},
            "model": {"random": {"config": {"model_type": "qwen3"}, "characters": CHARACTERS}},
            "data": {"sources": ["rows.jsonl"], **data},
            **({} if kind == "infer" else {"steps": 1}),
        }
        (tmp_path / "spec.yaml").write_text(
            yaml.safe_dump(spec | ({"rewards": [{"type": "accuracy"}]} if kind == "grpo" else {}))
        )
        code = preview_specs(["spec.yaml"], list(overrides), rows=count)
        return code, capsys.readouterr().out

    return show


def chat(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def test_rows_are_shown_with_what_is_trained(preview):
    code, shown = preview([chat("1+1", "2"), chat("3+4", "7 x")], loss_weights=[{"pattern": "x", "weight": 3}])
    assert code == 0
    assert "rows.jsonl, row 2, conversation: 27 tokens, 4 trained" in shown
    assert "<|im_start|>assistant\n[[2<|im_end|>]]\n" in shown
    assert "[[7 ]][[3×x]][[<|im_end|>]]" in shown
    assert "2 training rows, 0 held-out rows" in shown


def test_on_a_terminal_trained_text_is_green_and_other_weights_yellow(monkeypatch, preview):
    terminal = partial(Console, force_terminal=True, color_system="standard")
    monkeypatch.setattr("rlflow.jobs.preview.Console", terminal)
    code, shown = preview([chat("3+4", "7 x")], loss_weights=[{"pattern": "x", "weight": 3}])
    assert code == 0
    assert "What is trained is green (other weights than 1: yellow)." in shown
    dim, green, yellow, end = "\033[2m", "\033[32m", "\033[33m", "\033[0m"
    assert f"{dim}<|im_start|>assistant{end}\n{green}7 {end}{yellow}x{end}{green}<|im_end|>{end}" in shown
    assert "[[" not in shown


def test_lengths_sources_and_padding_are_counted(preview):
    code, shown = preview([chat("1", "2" * length) for length in range(1, 41)], held_out=10)
    assert code == 0
    assert "lengths in tokens: median" in shown and "█" in shown
    assert "padding: 0.0% with packing, " in shown and "this job uses packing" in shown
    row = next(line for line in shown.splitlines() if "rows.jsonl" in line and "│" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")][2] == "30"
    assert row.rstrip("│ ").endswith("10")


def test_every_bad_row_is_counted_and_the_first_are_named(preview):
    rows = [chat("1", "2"), chat("1", ""), {"messages": [{"role": "user", "content": "hi"}]}, chat("1", "2" * 90)]
    code, shown = preview(rows + [chat("", "2")] * 30, max_tokens=80)
    assert code == 2
    assert "bad row: rows.jsonl, row 2: content of message 2 (assistant) is empty" in shown
    assert "bad row: rows.jsonl, row 3: nothing to train on" in shown
    assert "bad row: rows.jsonl, row 4: 112 tokens, more than data.max_tokens (80)" in shown
    assert shown.count("bad row: ") == 20 and "33 bad rows (the first 20 are shown)" in shown


def test_rows_that_are_dropped_or_cut_are_no_bad_rows(preview):
    rows = [chat("1", "2"), chat("1", "2" * 90)]
    code, shown = preview(rows, max_tokens=80, overlong="drop")
    assert code == 0 and "1 rows dropped, 0 cut" in shown
    code, shown = preview(rows, max_tokens=80, overlong="truncate_right")
    assert code == 0 and "0 rows dropped, 1 cut" in shown and "longest 80" in shown


def test_pairs_and_prompts_are_shown_as_their_jobs_use_them(preview):
    pair = {"prompt": "1+1", "chosen": "2", "rejected": "3"}
    code, shown = preview([pair], kind="dpo")
    assert code == 0 and "row 1, chosen: " in shown and "[[3<|im_end|>]]" in shown
    code, shown = preview([chat("1+1", "2")], kind="grpo")
    assert code == 0 and ", prompt: " in shown and ", 0 trained" in shown and "[[" not in shown
    assert "<|im_start|>assistant\n" in shown and "padding" not in shown


def test_overrides_reach_the_preview(preview):
    _, shown = preview([chat("1+1", "2")], overrides=["data.loss=all"])
    assert "[[<|im_start|>user" in shown


def test_of_a_stream_the_first_window_is_shown(preview):
    code, shown = preview([chat(str(n), str(n)) for n in range(30)], streaming={"buffer_rows": 8}, held_out=2, shuffle=False)
    assert code == 0
    assert "the first 8 training rows, 2 held-out rows" in shown
    assert "rows.jsonl, row 3, conversation" in shown, "the first two are held out"


def test_the_template_of_the_spec_is_used(preview, tmp_path):
    (tmp_path / "plain.jinja").write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}<|im_end|>{% endfor %}")
    code, shown = preview([chat("1+1", "2")], chat_template="plain.jinja")
    assert code == 0 and "<user>1+1" in shown


def test_rows_of_batch_inference_are_shown_as_they_are_asked(preview):
    rows = [chat("1+1", "2"), {"messages": [{"role": "user", "content": "3+4"}]}, chat("1" * 90, "2"), {"messages": "x"}]
    code, shown = preview(rows, kind="infer", max_prompt_tokens=80)
    assert code == 2 and "try: 4 rows to answer" in shown
    assert "row 2, prompt: " in shown and "<|im_start|>user\n1+1<|im_end|>\n<|im_start|>assistant\n" in shown
    assert "bad row: rows.jsonl, row 3: the prompt has 109 tokens, data.max_prompt_tokens is 80" in shown
    assert "bad row: rows.jsonl, row 4: " in shown and "2 bad rows: the job records them as errors" in shown


def test_a_row_of_broken_json_hides_no_other(preview):
    code, shown = preview([chat("1", "2"), '{"messages": [', chat("1", ""), chat("3", "4")])
    assert code == 2 and "4 rows, of which some cannot be read" in shown
    assert "bad row: rows.jsonl, row 2: not valid JSON" in shown
    assert "bad row: rows.jsonl, row 3: content of message 2 (assistant) is empty" in shown
    assert "2 bad rows: correct or remove them" in shown


def test_lengths_are_counted_in_ranges_that_do_not_overlap(preview):
    _, shown = preview([chat("1", "2" * length) for length in (1, 2, 3, 3)])
    bars = [line.split() for line in shown.splitlines() if " to " in line and "█" in line]
    assert [(int(bar[0]), int(bar[2]), int(bar[4])) for bar in bars] == [(23, 23, 1), (24, 24, 1), (25, 25, 2)]
