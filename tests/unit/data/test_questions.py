from rlflow.data.questions import ask, given_answer
from rlflow.spec.data import DataSpec


def spec(**changes):
    return DataSpec.model_validate({"sources": ["a.jsonl"], **changes})


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_a_thinking_template_and_its_switch(byte_level):
    asked = ask(byte_level, [user("Paris")], spec())
    assert asked.text.endswith("<|im_start|>assistant\n") and asked.answer_start == ""
    off = ask(byte_level, [user("Paris")], spec(chat_template_kwargs={"enable_thinking": False}))
    assert off.answer_start == "<think>\n\n</think>\n\n" and off.text == asked.text + off.answer_start


def test_a_response_prefix_is_read_by_the_model_and_begins_the_answer(byte_level):
    prefixed = ask(byte_level, [user("Paris")], spec(), "<think>\n\n</think>\n\n")
    off = ask(byte_level, [user("Paris")], spec(chat_template_kwargs={"enable_thinking": False}))
    assert (prefixed.text, prefixed.prompt_ids, prefixed.answer_start) == (off.text, off.prompt_ids, off.answer_start)
    assert byte_level.decode(prefixed.prompt_ids) == prefixed.text


def test_the_model_reads_no_old_thinking_but_it_is_kept(byte_level):
    messages = [user("a"), assistant("<think>secret</think>b"), user("c")]
    asked = ask(byte_level, messages, spec(system="Be brief."))
    assert "secret" not in asked.text and "Be brief." in asked.text
    assert asked.messages == [{"role": "system", "content": "Be brief."}, *messages]


def test_the_answer_that_a_row_has_is_not_asked_with(byte_level):
    messages = [user("a"), assistant("known")]
    assert "known" not in ask(byte_level, messages, spec()).text
    assert given_answer(messages, spec(system="s")) == "known"
    assert given_answer(messages[:1], spec()) is None
