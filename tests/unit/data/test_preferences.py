"""Preference rows: the formats of ms-swift and TRL, what is refused, and the sequences they become."""

import json

import pytest

from rlflow.data.loss_weights import encode_conversation
from rlflow.data.preferences import DetectLabelled, Labelled, detect_preference_format
from rlflow.data.sources import load_sources
from rlflow.data.tokenized_preferences import tokenize_labelled, tokenize_pairs
from rlflow.errors import DataError
from rlflow.spec.data import DataSpec


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "s"}
GOOD, BAD = [user("q"), assistant("good")], [user("q"), assistant("bad")]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": GOOD, "rejected_response": "bad"},
        {"messages": GOOD, "rejected_response": [assistant("bad")]},
        {"messages": GOOD, "rejected_messages": BAD},
        {"messages": GOOD, "rejected_messages": BAD, "rejected_response": None},
        {"messages": GOOD, "rejected_messages": None, "rejected_response": "bad"},
        {"query": "q", "response": "good", "rejected_response": "bad"},
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": [user("q")], "chosen": [assistant("good")], "rejected": [assistant("bad")]},
        {"chosen": GOOD, "rejected": BAD},
        {"prompt": "q", "chosen": GOOD, "rejected": BAD, "messages": GOOD},
    ],
)
def test_formats(row):
    pair = detect_preference_format(list(row)).read(row)
    assert (pair.chosen, pair.rejected, pair.margin) == (GOOD, BAD, 0.0)


def test_margins_system_prompts_and_earlier_turns_are_kept():
    row = {"messages": [SYSTEM, *GOOD, *GOOD], "rejected_messages": [*GOOD, *BAD], "margin": 2}
    pair = detect_preference_format(list(row)).read(row)
    assert (pair.chosen, pair.rejected, pair.margin) == ([SYSTEM, *GOOD, *GOOD], [SYSTEM, *GOOD, *BAD], 2.0)
    row = {"messages": [*BAD, *GOOD], "rejected_response": "bad", "margin": None}
    assert detect_preference_format(list(row)).read(row).rejected == [*BAD, *BAD]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": GOOD, "rejected_response": "bad", "tools": [{"name": "add"}]},
        {"messages": GOOD, "rejected_messages": BAD, "tools": '[{"name": "add"}]'},
        {"prompt": "q", "chosen": "good", "rejected": "bad", "tools": [{"name": "add"}]},
    ],
)
def test_both_conversations_have_the_tools(row):
    found = detect_preference_format(list(row)).read(row)
    assert found.chosen[0] == found.rejected[0] == user("q") | {"tools": [{"name": "add"}]}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": GOOD, "rejected_response": "good"}, "are the same"),
        ({"messages": GOOD, "rejected_response": None}, "rejected_response is missing"),
        ({"messages": [user("q")], "rejected_response": "bad"}, "ends in a user turn"),
        ({"messages": GOOD, "rejected_messages": [user("other"), assistant("bad")]}, "same prompt"),
        ({"chosen": "good", "rejected": "bad"}, "needs a column prompt"),
        ({"prompt": "q", "chosen": "good", "rejected": ""}, "column rejected is empty"),
        ({"prompt": "q", "chosen": "good", "rejected": "bad", "margin": "2"}, "column margin"),
    ],
)
def test_malformed_rows(row, reason):
    with pytest.raises(DataError, match=reason):
        detect_preference_format(list(row)).read(row)


def test_columns_without_preferences():
    with pytest.raises(DataError, match=r"no rejected answer.*a, b.*rejected_response"):
        detect_preference_format(["a", "b"])
    with pytest.raises(DataError, match=r"no column label.*kto\.unpair_rows"):
        DetectLabelled()(["prompt", "chosen", "rejected"])


def test_labelled_rows():
    row = {"prompt": "q", "completion": "good", "label": True}
    assert DetectLabelled()(list(row)).read(row) == [Labelled(GOOD, True)]
    with pytest.raises(DataError, match="label is 'yes', expected true or false"):
        DetectLabelled()(list(row)).read(row | {"label": "yes"})
    pair = {"messages": GOOD, "rejected_response": "bad"}
    assert DetectLabelled(unpair_rows=True)(list(pair)).read(pair) == [Labelled(GOOD, True), Labelled(BAD, False)]


# ---- tokenised


def load(tmp_path, path, detect, **fields):
    spec = DataSpec(sources=(path,), **fields)
    return load_sources(spec, tmp_path / "cache", detect), spec


def pair_rows(count):
    return [{"prompt": f"{n}", "chosen": f"{n}a", "rejected": f"{n}bb", "margin": n / 2} for n in range(count)]


def decoded(tokenizer, examples, index):
    """The whole text, and the part of it that is trained."""
    ids, weights = examples[index]
    return tokenizer.decode(ids), tokenizer.decode(ids[weights > 0])


def test_pairs_lie_next_to_each_other(tmp_path, write_jsonl, characters):
    rows, spec = load(tmp_path, write_jsonl(pair_rows(1203)), detect_preference_format)
    examples = tokenize_pairs(rows, characters, spec, tmp_path / "tokens")
    assert len(examples) == 2406
    for row in (0, 499, 500, 1202):
        for offset, answer in enumerate((f"{row}a", f"{row}bb")):
            ids, weights = encode_conversation(characters, [user(f"{row}"), assistant(answer)], spec)
            assert [values.tolist() for values in examples[2 * row + offset]] == [ids, weights]
            assert examples.label(2 * row + offset) == row / 2
            assert examples.origin(2 * row + offset).endswith(f"rows.jsonl, row {row + 1}")
    assert tokenize_pairs(rows, characters, spec, tmp_path / "tokens").path == examples.path


def test_only_the_last_answer_is_trained(tmp_path, write_jsonl, characters):
    row = {"messages": [user("1"), assistant("2"), user("3"), assistant("4")], "rejected_response": "5"}
    rows, spec = load(tmp_path, write_jsonl([row]), detect_preference_format)
    examples = tokenize_pairs(rows, characters, spec, tmp_path / "tokens")
    assert decoded(characters, examples, 0)[1].startswith("4<|im_end|>")
    assert decoded(characters, examples, 1)[1].startswith("5<|im_end|>")


def test_a_long_answer_is_an_error_or_drops_its_pair(tmp_path, write_jsonl, characters):
    values = pair_rows(3)
    values[1]["rejected"] = "b" * 100
    path = write_jsonl(values)
    rows, spec = load(tmp_path, path, detect_preference_format, max_tokens=60)
    with pytest.raises(DataError, match=r"rows\.jsonl, row 2: \d+ tokens, more than data\.max_tokens \(60\)"):
        tokenize_pairs(rows, characters, spec, tmp_path / "tokens")
    rows, spec = load(tmp_path, path, detect_preference_format, max_tokens=60, overlong="drop")
    examples = tokenize_pairs(rows, characters, spec, tmp_path / "tokens")
    assert [examples.label(i) for i in range(len(examples))] == [0, 0, 1, 1]


def test_bad_rows_are_named(tmp_path, write_jsonl, characters):
    values = [*pair_rows(2), {"prompt": "q", "chosen": "x", "rejected": "x", "margin": 0}]
    rows, spec = load(tmp_path, write_jsonl(values), detect_preference_format)
    with pytest.raises(DataError, match=r"rows\.jsonl, row 3: the chosen and the rejected answer are the same"):
        tokenize_pairs(rows, characters, spec, tmp_path / "tokens")


def labelled_rows():
    prompts = ["0", "1", "1", "2", "0"]
    return [{"prompt": p, "completion": f"c{n}", "label": n % 2 == 0} for n, p in enumerate(prompts)]


def test_labelled_answers_have_the_answer_of_the_next_row_with_another_prompt(tmp_path, write_jsonl, characters):
    rows, spec = load(tmp_path, write_jsonl(labelled_rows()), DetectLabelled())
    examples = tokenize_labelled(rows, characters, spec, tmp_path / "tokens")
    assert [examples.label(i) for i in range(10)] == [1, 1, 0, 0, 1, 1, 0, 0, 1, 1]
    others = []
    for index, row in enumerate(labelled_rows()):
        text, trained = decoded(characters, examples, 2 * index)
        assert f"user\n{row['prompt']}<" in text and trained.startswith(row["completion"])
        text, trained = decoded(characters, examples, 2 * index + 1)
        assert f"user\n{row['prompt']}<" in text
        others.append(trained[:2])
    assert others == ["c1", "c3", "c3", "c4", "c1"]


def test_another_rows_answer_is_cut_at_the_limit(tmp_path, write_jsonl, characters):
    values = [{"prompt": "1" * 20, "completion": "a", "label": True}, {"prompt": "2", "completion": "b" * 20, "label": False}]
    rows, spec = load(tmp_path, write_jsonl(values), DetectLabelled())
    longest = max(tokenize_labelled(rows, characters, spec, tmp_path / "tokens").lengths[::2])
    rows, spec = load(tmp_path, write_jsonl(values), DetectLabelled(), max_tokens=longest)
    examples = tokenize_labelled(rows, characters, spec, tmp_path / "tokens")
    assert len(examples[1][0]) == longest
    assert 0 < examples[1][1].sum() < 20


def test_rows_with_the_same_prompt_cannot_estimate_a_divergence(tmp_path, write_jsonl, characters):
    values = [{"prompt": "1", "completion": c, "label": True} for c in "ab"]
    rows, spec = load(tmp_path, write_jsonl(values), DetectLabelled())
    with pytest.raises(DataError, match="all rows have the same prompt"):
        tokenize_labelled(rows, characters, spec, tmp_path / "tokens")


def test_unpaired_rows(tmp_path, write_jsonl, characters):
    path = write_jsonl([json.loads(json.dumps(row)) for row in pair_rows(2)])
    rows, spec = load(tmp_path, path, DetectLabelled(unpair_rows=True))
    examples = tokenize_labelled(rows, characters, spec, tmp_path / "tokens")
    assert [examples.label(i) for i in range(8)] == [1, 1, 0, 0, 1, 1, 0, 0]
    assert [decoded(characters, examples, i)[1].partition("<")[0] for i in range(8)] == [
        *("0a", "1a", "0bb", "1a", "1a", "0a", "1bb", "0a"),
    ]
