import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from rlflow.data import arrow_file
from rlflow.data.arrow_file import map_arrow, write_arrow
from rlflow.data.chat import render_prompt
from rlflow.data.formats import detect_training_format
from rlflow.data.loss_weights import encode_conversation
from rlflow.data.rows import Rows
from rlflow.data.sources import load_sources
from rlflow.data.tokenized import ConversationSet, tokenize_conversations, tokenize_prompts
from rlflow.errors import DataError
from rlflow.spec.data import DataSpec


@pytest.fixture
def path(write_jsonl):
    return write_jsonl([{"query": f"{n}+{n}", "response": str(2 * n), "solution": str(2 * n)} for n in range(2500)])


def load(tmp_path, path, **fields):
    spec = DataSpec(sources=(path,), **fields)
    return load_sources(spec, tmp_path / "cache"), spec


def test_prompts_carry_tokens_text_messages_and_columns(tmp_path, path, characters):
    rows, spec = load(tmp_path, path)
    prompts = tokenize_prompts(rows, characters, spec, tmp_path / "tokens")
    assert len(prompts) == 2500
    prompt = prompts[2345]
    text, ids = render_prompt(characters, rows[2345].messages, spec)
    assert (prompt.prompt_id, prompt.text, prompt.prompt_ids) == (2345, text, ids)
    assert prompt.messages == [{"role": "user", "content": "2345+2345"}]
    assert prompt.columns == {"query": "2345+2345", "response": "4690", "solution": "4690"}
    assert prompt.origin.endswith("rows.jsonl, row 2346")
    assert prompts.lengths[2345] == len(ids)
    assert prompts[-1].prompt_id == 2499


def test_conversations_are_those_of_single_rows(tmp_path, path, characters):
    rows, spec = load(tmp_path, path)
    conversations = tokenize_conversations(rows, characters, spec, tmp_path / "tokens")
    for index in (0, 999, 1000, 2499):
        ids, weights = encode_conversation(characters, rows[index].messages, spec)
        found_ids, found_weights = conversations[index]
        assert (found_ids.dtype, found_weights.dtype) == (np.int32, np.float32)
        assert (found_ids.tolist(), found_weights.tolist()) == (ids, weights)
        assert conversations.lengths[index] == len(ids)
    assert conversations.origin(1000).endswith("rows.jsonl, row 1001")


def test_a_rank_opens_conversations_by_path_without_datasets(tmp_path, path, characters):
    rows, spec = load(tmp_path, path)
    conversations = tokenize_conversations(rows, characters, spec, tmp_path / "tokens")
    code = (
        "import sys; from rlflow.data.tokenized import ConversationSet\n"
        f"ids, weights = ConversationSet({str(conversations.path)!r})[7]\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
        "print(len(ids), weights.sum())"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.split() == [str(conversations.lengths[7]), "3.0"]
    assert len(ConversationSet(conversations.path)) == 2500


def test_the_same_inputs_are_not_tokenised_again(tmp_path, path, characters, monkeypatch):
    rows, spec = load(tmp_path, path)
    first = tokenize_conversations(rows, characters, spec, tmp_path / "tokens")
    os.utime(path)
    rows, spec = load(tmp_path, path)

    def refuse(*args, **kwargs):
        raise AssertionError("tokenised again")

    monkeypatch.setattr(type(characters), "__call__", refuse)
    again = tokenize_conversations(rows, characters, spec, tmp_path / "tokens")
    assert again.path == first.path and again[3][0].tolist() == first[3][0].tolist()
    with pytest.raises(AssertionError, match="tokenised again"):
        tokenize_prompts(rows, characters, spec, tmp_path / "tokens")


def test_other_inputs_give_another_file(tmp_path, path, write_jsonl, characters, byte_level):
    rows, spec = load(tmp_path, path)
    changed = write_jsonl([{"query": "1+1", "response": "2"}], "other.jsonl")
    files = {
        tokenize_conversations(rows, characters, spec, tmp_path / "tokens").path,
        tokenize_conversations(rows, byte_level, spec, tmp_path / "tokens").path,
        tokenize_conversations(rows.take([1, 0]), characters, spec, tmp_path / "tokens").path,
        tokenize_conversations(load(tmp_path, changed)[0], characters, spec, tmp_path / "tokens").path,
    }
    for fields in (
        {"loss": "all"},
        {"system": "be kind"},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ):
        rows, spec = load(tmp_path, path, **fields)
        files.add(tokenize_conversations(rows, characters, spec, tmp_path / "tokens").path)
    assert len(files) == 7


def test_other_code_libraries_and_formats_give_another_file(tmp_path, path, characters, monkeypatch):
    rows, spec = load(tmp_path, path)

    def name():
        return tokenize_conversations(rows, characters, spec, tmp_path / "tokens").path.name

    names = [name()]
    monkeypatch.setattr(arrow_file, "version", lambda library: "another")
    names.append(name())
    monkeypatch.setattr(arrow_file, "_code_digest", lambda: "another")
    names.append(name())
    monkeypatch.setattr(characters, "split_special_tokens", True, raising=False)
    names.append(name())
    part = replace(rows.parts[0], format=replace(rows.parts[0].format, query="response", response="query"))
    rows = Rows([part], rows.positions)
    names.append(name())
    assert len(set(names)) == 5


def test_of_two_writers_at_once_the_first_one_s_file_stays(tmp_path):
    schema = arrow_file.pa.schema({"n": arrow_file.pa.int64()})
    path = tmp_path / "x.arrow"

    def batches(numbers, meanwhile):
        yield arrow_file.pa.record_batch([numbers], schema=schema)
        meanwhile()

    def other():
        write_arrow(path, schema, batches([1, 2], lambda: None), 2, is_shared=True)

    write_arrow(path, schema, batches([3], other), 1, is_shared=True)
    table, source_rows = map_arrow(path)
    assert (table["n"].to_pylist(), source_rows) == ([1, 2], 2)
    assert list(tmp_path.iterdir()) == [path]
    write_arrow(path, schema, batches([3], lambda: None), 1)
    assert map_arrow(path)[0]["n"].to_pylist() == [3], "what is not shared is written anew"


def test_a_row_beyond_the_limit_is_named(tmp_path, write_jsonl, characters):
    path = write_jsonl([{"query": "1", "response": "2"}] * 16 + [{"query": "1" * 50, "response": "2" * 60}])
    rows, spec = load(tmp_path, path, max_prompt_tokens=60, max_tokens=100)
    with pytest.raises(DataError, match=r"row 17: 69 tokens, more than data.max_prompt_tokens \(60\); raise it"):
        tokenize_prompts(rows, characters, spec, tmp_path / "tokens")
    with pytest.raises(DataError, match=r"row 17: 131 tokens, more than data.max_tokens \(100\); raise it"):
        tokenize_conversations(rows, characters, spec, tmp_path / "tokens")
    assert not list((tmp_path / "tokens").iterdir())


def test_rows_beyond_the_limit_can_be_dropped(tmp_path, write_jsonl, characters, caplog):
    path = write_jsonl([{"query": "1" * 50}, {"query": "7"}, {"query": "1" * 50}, {"query": "8"}])
    rows, spec = load(tmp_path, path, max_prompt_tokens=60, overlong="drop")
    for _ in range(2):
        caplog.clear()
        prompts = tokenize_prompts(rows, characters, spec, tmp_path / "tokens")
        assert caplog.messages == ["dropped 2 of 4 rows longer than data.max_prompt_tokens (60)"]
    assert (len(prompts), prompts.num_dropped) == (2, 2)
    assert [prompt.columns["query"] for prompt in prompts] == ["7", "8"]
    assert [prompt.prompt_id for prompt in prompts] == [0, 1]
    assert prompts[1].origin.endswith("row 4")
    rows, spec = load(tmp_path, path, max_prompt_tokens=5, overlong="drop")
    with pytest.raises(DataError, match="every row is longer than 5 tokens"):
        tokenize_prompts(rows, characters, spec, tmp_path / "tokens")


@pytest.mark.parametrize(("overlong", "kept"), [("truncate_left", slice(-40, None)), ("truncate_right", slice(0, 40))])
def test_rows_beyond_the_limit_can_be_truncated(tmp_path, write_jsonl, characters, caplog, overlong, kept):
    path = write_jsonl(
        [{"query": "1", "response": "2" * 50}, {"query": "1", "response": "2"}, {"query": "1" * 50, "response": "2"}]
    )
    whole, spec = load(tmp_path, path, loss="all")
    ids, _ = tokenize_conversations(whole, characters, spec, tmp_path / "tokens")[0]
    rows, spec = load(tmp_path, path, max_tokens=40, overlong=overlong)
    found = tokenize_conversations(rows, characters, spec, tmp_path / "tokens")
    assert found[0][0].tolist() == ids[kept].tolist()
    # The first tokens of the last row hold nothing of its answer, so it goes.
    dropped = int(overlong == "truncate_right")
    assert (len(found), found.num_cut, found.num_dropped) == (3 - dropped, 2 - dropped, dropped)
    assert f"truncated {2 - dropped} of 3 rows longer than data.max_tokens (40)" in caplog.messages


def test_plain_text_can_be_split(tmp_path, write_jsonl, characters, caplog):
    path = write_jsonl([{"text": "0123456789" * 5}, {"text": "01"}])
    spec = DataSpec(sources=(path,), max_tokens=20, overlong="split")
    rows = load_sources(spec, tmp_path / "cache", detect_training_format)
    found = tokenize_conversations(rows, characters, spec, tmp_path / "tokens")
    texts = [characters.decode(found[number][0]) for number in range(len(found))]
    assert texts == ["0123456789" * 2, "0123456789" * 2, "0123456789<|im_end|>", "01<|im_end|>"]
    assert (found.num_cut, found.num_dropped) == (1, 0)
    assert caplog.messages == ["split 1 of 2 rows longer than data.max_tokens (20)"]


def test_a_conversation_is_not_split(tmp_path, write_jsonl, characters):
    rows, spec = load(tmp_path, write_jsonl([{"query": "1", "response": "2" * 50}]), max_tokens=20, overlong="split")
    with pytest.raises(DataError, match=r"row 1: .*data.overlong: split is for plain text only"):
        tokenize_conversations(rows, characters, spec, tmp_path / "tokens")


@pytest.mark.parametrize("tokenize", [tokenize_prompts, tokenize_conversations])
def test_a_row_that_cannot_be_rendered_is_named(tmp_path, write_jsonl, characters, tokenize):
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}
    user = {"role": "user", "content": "hi"}
    good = [user, {"role": "assistant", "content": "yo"}]
    rows, spec = load(tmp_path, write_jsonl([{"messages": good}, {"messages": [user, call, user]}]))
    with pytest.raises(DataError, match=r"rows.jsonl, row 2: the chat template refuses it"):
        tokenize(rows, characters, spec, tmp_path / "tokens")


def test_no_rows_at_all_are_no_error(characters, tmp_path):
    """A job without held-out rows tokenises none."""
    spec = DataSpec(sources=["x.jsonl"], max_prompt_tokens=1, max_tokens=1)
    none = Rows((), np.zeros((0, 2), dtype=np.int64))
    assert len(tokenize_prompts(none, characters, spec, tmp_path)) == 0
    assert tokenize_conversations(none, characters, spec, tmp_path).loss_weight_sums == []
