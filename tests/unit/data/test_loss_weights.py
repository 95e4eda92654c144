import pytest

from rlflow.data.chat import render
from rlflow.data.loss_weights import Span, encode_conversation, weigh_tokens
from rlflow.errors import DataError
from rlflow.spec.data import DataSpec

EMPTY_THINK = "<think>\n\n</think>\n\n"
# Puts a think block before every answer of the last round, parsed from its text or empty.
THINK_ADDING = """
{%- set last = namespace(user=-1) -%}
{%- for m in messages if m.role == 'user' -%}{%- set last.user = messages.index(m) -%}{%- endfor -%}
{%- for m in messages -%}
{%- set thought, answer = '', m.content -%}
{%- if '</think>' in m.content -%}
{%- set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') -%}
{%- set answer = m.content.split('</think>')[-1].lstrip('\n') -%}
{%- endif -%}
{{- '<|im_start|>' + m.role + '\n' -}}
{%- if m.role == 'assistant' and loop.index0 > last.user -%}
{{- '<think>\n' + thought + '\n</think>\n\n' -}}
{%- endif -%}
{{- answer + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""
# No header of its own for an answer; strips what it is given.
BRACKETS = """
{{- '<s>' -}}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{{- '[INST] ' + m.content | trim + ' [/INST]' -}}
{%- else -%}{{- ' ' + m.content | trim + '</s>' -}}{%- endif -%}
{%- endfor -%}
"""
PLAIN = """
{%- for m in messages -%}{{- m.role + ': ' + m.content + '\n' -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'assistant: ' -}}{%- endif -%}
"""
TOOLS = """
{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\n' + m.content -}}
{%- for call in m.tool_calls or [] -%}{{- '\ncall ' + call.name -}}{%- endfor -%}
{{- '<|im_end|>\n' -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""


def say(*contents):
    roles = ["user", "assistant"] * len(contents)
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


def trained(tokenizer, messages, template=None, **fields):
    """The texts of runs of trained tokens, with their weights."""
    spec = DataSpec(sources=("unused.jsonl",), **fields)
    own = tokenizer.chat_template
    tokenizer.chat_template = template or own
    try:
        ids, weights = encode_conversation(tokenizer, messages, spec)
    finally:
        tokenizer.chat_template = own
    assert len(ids) == len(weights)
    runs = []
    for number, weight in enumerate(weights):
        if weight and (not runs or runs[-1][2] != number or runs[-1][1] != weight):
            runs.append([[ids[number]], weight, number + 1])
        elif weight:
            runs[-1][0].append(ids[number])
            runs[-1][2] = number + 1
    return [(tokenizer.decode(run), weight) for run, weight, _ in runs]


@pytest.fixture(params=["characters", "byte_level"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def test_every_answer_and_its_end_token_are_trained(tokenizer):
    assert trained(tokenizer, say("12+34", "46", "1+1", "2")) == [("46<|im_end|>", 1.0), ("2<|im_end|>", 1.0)]


def test_last_round_trains_what_follows_the_last_user_turn(tokenizer):
    messages = [*say("a", "b", "c", "d"), {"role": "assistant", "content": "e"}]
    runs = trained(tokenizer, messages, loss="last_round")
    assert runs == [("d<|im_end|>", 1.0), ("e<|im_end|>", 1.0)]


def test_all_trains_every_token(tokenizer):
    [(text, weight)] = trained(tokenizer, say("a", "b"), loss="all")
    assert weight == 1.0
    assert text == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"


def test_answers_that_look_like_headers_are_found(tokenizer):
    messages = [{"role": "system", "content": "assistant"}, *say("user", "s", "s", "assistant")]
    assert trained(tokenizer, messages) == [("s<|im_end|>", 1.0), ("assistant<|im_end|>", 1.0)]


def test_an_answer_repeated_by_the_user_is_found(tokenizer):
    header = "assistant\nyes"
    assert trained(tokenizer, say(header, "yes", header, "yes")) == [("yes<|im_end|>", 1.0)] * 2


def test_messages_weigh_what_they_say(tokenizer):
    messages = say("a", "b", "c", "d", "e", "f")
    messages[1]["loss"] = False
    messages[3]["loss_scale"] = 0.5
    assert trained(tokenizer, messages) == [("d<|im_end|>", 0.5), ("f<|im_end|>", 1.0)]
    messages[1]["loss"] = True
    runs = trained(tokenizer, messages, loss="last_round")
    assert runs == [("b<|im_end|>", 1.0), ("f<|im_end|>", 1.0)]


def test_an_empty_think_block_can_be_left_out(tokenizer):
    messages = say("a", EMPTY_THINK + "Paris")
    assert trained(tokenizer, messages) == [(EMPTY_THINK + "Paris<|im_end|>", 1.0)]
    assert trained(tokenizer, messages, ignore_empty_think=True) == [("Paris<|im_end|>", 1.0)]
    thought = "<think>\nx\n</think>\n\nParis"
    runs = trained(tokenizer, say("a", thought), ignore_empty_think=True)
    assert runs == [(thought + "<|im_end|>", 1.0)]


def test_what_the_generation_prompt_gives_is_not_trained(tokenizer):
    off = {"enable_thinking": False}
    runs = trained(tokenizer, say("a", "Hi", "b", "Paris"), chat_template_kwargs=off)
    assert runs == [("Hi<|im_end|>", 1.0), ("Paris<|im_end|>", 1.0)]


def test_thinking_stripped_from_earlier_rounds_is_mapped(tokenizer):
    thought = "<think>\nx\n</think>\n\n"
    runs = trained(tokenizer, say("a", thought + "Hi", "b", thought + "Ho"))
    assert runs == [("Hi<|im_end|>", 1.0), (thought + "Ho<|im_end|>", 1.0)]


def test_a_template_that_adds_think_blocks_is_mapped(tokenizer):
    runs = trained(tokenizer, say("a", "<think>\nx\n</think>\n\nHi", "b", "Ho"), THINK_ADDING)
    assert runs == [("Hi<|im_end|>", 1.0), (EMPTY_THINK + "Ho<|im_end|>", 1.0)]
    runs = trained(tokenizer, say("a", "Hi", "b", "Ho"), THINK_ADDING, ignore_empty_think=True)
    assert runs == [("Hi<|im_end|>", 1.0), ("Ho<|im_end|>", 1.0)]


def test_a_template_without_answer_header_is_mapped(byte_level):
    runs = trained(byte_level, say(" a ", "Paris \n", "b", "Ho"), BRACKETS)
    assert runs == [(" Paris</s>", 1.0), (" Ho</s>", 1.0)]


def test_a_template_without_end_token_is_mapped(tokenizer):
    assert trained(tokenizer, say("a", "Hi ", "b", "Ho"), PLAIN) == [("Hi ", 1.0), ("Ho", 1.0)]


def test_trailing_space_is_part_of_the_answer(tokenizer):
    assert trained(tokenizer, say("a", "Hi \n")) == [("Hi \n<|im_end|>", 1.0)]


def test_tool_calls_are_trained_and_tool_answers_are_not(tokenizer):
    messages = [
        *say("a"),
        {"role": "assistant", "content": "so", "tool_calls": [{"name": "now"}]},
        {"role": "tool", "content": "noon"},
        {"role": "assistant", "content": "noon"},
    ]
    assert trained(tokenizer, messages, TOOLS) == [("so\ncall now<|im_end|>", 1.0), ("noon<|im_end|>", 1.0)]


@pytest.mark.parametrize("answer", ["Grüße aus München!", "你好，世界", "naïve 😀", "é"])
def test_characters_of_several_tokens_are_trained_whole(byte_level, answer):
    assert trained(byte_level, say("日本?", answer, "é", answer)) == [(answer + "<|im_end|>", 1.0)] * 2


def test_the_tokens_are_those_of_the_rendered_text(byte_level):
    messages = say("Grüße", "你好", "b", "c")
    ids, _ = encode_conversation(byte_level, messages, DataSpec(sources=("unused.jsonl",)))
    text = byte_level.apply_chat_template(messages, tokenize=False)
    assert ids == byte_level(text)["input_ids"] and byte_level.decode(ids) == text


def test_a_template_that_rewrites_text_is_refused(characters):
    shouting = characters.chat_template.replace("content = message.content", "content = message.content[:1]")
    with pytest.raises(DataError, match=r"cannot be found in the text; set data.chat_template"):
        trained(characters, say("hello", "there"), shouting)


def test_nothing_to_train_on_is_refused(characters):
    with pytest.raises(DataError, match="nothing to train on"):
        trained(characters, say("hello"))
    with pytest.raises(DataError, match="nothing to train on"):
        trained(characters, say("a", "b", "c"), loss="last_round")


def test_a_token_over_two_spans_takes_the_larger_weight():
    offsets = [(0, 2), (2, 4), (2, 4), (4, 7), (7, 7)]
    weights = weigh_tokens(offsets, [Span(1, 3, 0.5), Span(5, 7, 1.0)], base=0.0)
    assert weights.tolist() == [0.5, 0.5, 0.5, 1.0, 0.0]


TOOL_TEMPLATE = """
{%- if tools -%}{{- 'TOOLS ' + (tools | tojson) + '\n' -}}{%- endif -%}
{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\n' + m.content -}}
{%- for call in m.tool_calls or [] -%}{{- '\ncall ' + (call.function | tojson) -}}{%- endfor -%}
{{- '<|im_end|>\n' -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""


def test_tools_reach_the_template_and_calls_are_trained(byte_level):
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = [
        {"role": "user", "content": "1+1", "tools": [{"name": "add"}]},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "two"},
    ]
    assert trained(byte_level, messages, TOOL_TEMPLATE) == [
        ('\ncall {"name": "add", "arguments": {"a": 1}}<|im_end|>', 1.0),
        ("two<|im_end|>", 1.0),
    ]
    spec = DataSpec(sources=("unused.jsonl",))
    byte_level.chat_template, own = TOOL_TEMPLATE, byte_level.chat_template
    try:
        assert render(byte_level, messages, spec, for_generation=False).startswith('TOOLS [{"name": "add"}]')
    finally:
        byte_level.chat_template = own


@pytest.mark.parametrize("key", ["tools", "tool_calls"])
def test_a_template_that_would_leave_tools_out_is_refused(byte_level, key):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    messages[key == "tool_calls"][key] = [{"function": {"name": "add"}}]
    with pytest.raises(DataError, match=f"it has {key}, which the chat template does not write"):
        trained(byte_level, messages, PLAIN)


def test_every_token_of_a_plain_text_is_trained_and_it_ends(tokenizer):
    assert trained(tokenizer, [{"role": "text", "content": "Paris"}], loss="last_round") == [("Paris<|im_end|>", 1.0)]


def answer(byte_level, text, *weights, **fields):
    return trained(byte_level, say("q", text), loss_weights=weights, **fields)


def test_patterns_weigh_what_they_find(byte_level):
    found = answer(byte_level, "a 12 b 34", {"pattern": r"\d+", "weight": 3})
    assert found == [("a ", 1), ("12", 3), (" b ", 1), ("34", 3), ("<|im_end|>", 1)]
    assert answer(byte_level, "aXb", {"pattern": "X", "weight": 2}, {"pattern": "Xb", "weight": 0.5}) == [
        ("aX", 1.0), ("b", 0.5), ("<|im_end|>", 1.0)
    ]  # fmt: skip
    assert answer(byte_level, "ab ab", {"pattern": "^ab$", "weight": 0}) == [("ab ab<|im_end|>", 1)]
    assert answer(byte_level, "ab", {"pattern": "b", "weight": 2}, loss="all")[-1] == ("<|im_end|>\n", 1)


def test_patterns_multiply_the_weight_of_the_message(byte_level):
    messages = say("q", "a1")
    messages[1]["loss_scale"] = 0.5
    assert trained(byte_level, messages, loss_weights=[{"pattern": "1", "weight": 4}]) == [
        ("a", 0.5), ("1", 2), ("<|im_end|>", 0.5)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("hermes", "x<tool_call>\n1\n</tool_call>y", [("x", 1), ("<tool_call>\n1\n</tool_call>", 2), ("y<|im_end|>", 1)]),
        ("ignore_think_prefix", "<think>\nab</think>c", [("ab</think>c<|im_end|>", 1)]),
        ("react", "Thought: t\nAction: a\nAction Input: i\nObservation: o\nFinal Answer: f", [
            ("Thought: t\n", 1), ("Action: a\nAction Input: i\nObservation:", 2), ("Final Answer: f<|im_end|>", 1)]),
        ("react", "Observation:Final Answer: f", [("Observation:", 2), ("Final Answer: f<|im_end|>", 1)]),
        ("qwen", "✿FUNCTION✿: f\n✿ARGS✿: a\n✿RESULT✿: r\n✿RETURN✿: done", [
            ("✿FUNCTION✿: f\n✿ARGS✿: a\n✿RESULT✿:", 2), ("✿RETURN✿: done<|im_end|>", 1)]),
        ("alpha_umi", "Next: caller", [("Next: caller", 2), ("<|im_end|>", 1)]),
        ("agentflan", "Name:n\nAction Input:i", [("Name:", 1), ("n\n", 3), ("Action Input:i", 2), ("<|im_end|>", 1)]),
    ],
)  # fmt: skip
def test_packaged_weights(byte_level, name, text, expected):
    assert answer(byte_level, text, name) == expected


def test_a_row_whose_weights_are_all_zero_is_refused(byte_level):
    with pytest.raises(DataError, match="nothing to train on"):
        trained(byte_level, say("q", "ab"), PLAIN, loss_weights=[{"pattern": ".*", "weight": 0}])
