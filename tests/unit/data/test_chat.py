import pytest

from rlflow.data.chat import load_tokenizer, render, render_prompt
from rlflow.errors import DataError
from rlflow.spec.data import DataSpec

THOUGHT = "<think>\nx\n</think>\n\nHi"


def spec(**fields):
    return DataSpec(sources=("unused.jsonl",), **fields)


def say(*contents):
    return [
        {"role": role, "content": content} for role, content in zip(["user", "assistant"] * len(contents), contents, strict=False)
    ]


def test_a_trailing_answer_is_not_part_of_the_prompt(characters):
    assert render_prompt(characters, say("1+1", "2"), spec()) == render_prompt(characters, say("1+1"), spec())


def test_the_system_prompt_of_the_row_comes_first(characters):
    own = [{"role": "system", "content": "row"}, *say("hi")]
    start = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n"
    assert render_prompt(characters, own, spec(system="job"))[0].startswith(start.format("row"))
    assert render_prompt(characters, say("hi"), spec(system="job"))[0].startswith(start.format("job"))


def test_thinking_of_earlier_rounds_is_left_out(characters):
    text = render(characters, say("a", THOUGHT, "b", THOUGHT), spec(), for_generation=False)
    assert text == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nHi<|im_end|>\n"
        f"<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n{THOUGHT}<|im_end|>\n"
    )


def test_thinking_is_switched_off_by_an_empty_block(characters):
    off = spec(chat_template_kwargs={"enable_thinking": False})
    empty = "<think>\n\n</think>\n\n"
    assert render_prompt(characters, say("a"), off)[0].endswith("<|im_start|>assistant\n" + empty)
    text = render(characters, say("a", "Hi", "b", "Ho"), off, for_generation=False)
    assert text.count(empty) == 1 and text.endswith(f"assistant\n{empty}Ho<|im_end|>\n")
    on = spec(chat_template_kwargs={"enable_thinking": True})
    assert render_prompt(characters, say("a"), on) == render_prompt(characters, say("a"), spec())


def test_a_tokenizer_without_template_asks_for_one(characters, tmp_path):
    characters.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(DataError, match=r"no chat template; set data.chat_template to 'qwen3' or to a .jinja file"):
        load_tokenizer(str(tmp_path), spec())
    named = load_tokenizer(str(tmp_path), spec(chat_template="qwen3"))
    assert named.chat_template == characters.chat_template
    (tmp_path / "mine.jinja").write_text("{{ messages[0].content }}!")
    mine = load_tokenizer(str(tmp_path), spec(chat_template=str(tmp_path / "mine.jinja")))
    assert render_prompt(mine, say("a"), spec())[0] == "a!"
    with pytest.raises(DataError, match=r"data.chat_template: nope is neither a file nor one of qwen3"):
        load_tokenizer(str(tmp_path), spec(chat_template="nope"))


def test_a_missing_model_is_one_line(tmp_path):
    with pytest.raises(DataError, match="model: cannot load the tokenizer of") as caught:
        load_tokenizer(str(tmp_path / "nothing"))
    assert "\n" not in str(caught.value)


def test_what_the_template_refuses_is_a_data_error(characters):
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}
    with pytest.raises(DataError, match="the chat template refuses it: this template has no tool calls"):
        render(characters, [*say("a"), call], spec(), for_generation=False)
