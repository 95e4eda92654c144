import pytest

from rlflow.data.thinking import is_balanced, opened_thinking, without_old_thinking


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("<|im_start|>assistant\n", ""),
        ("<|im_start|>assistant\n<think>\n", "<think>\n"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", "<think>\n\n</think>\n\n"),
        ("<think>earlier</think> answer<|im_start|>assistant\n", ""),
    ],
)
def test_what_a_prompt_opens_begins_the_answer(prompt, opened):
    assert opened_thinking(prompt) == opened


@pytest.mark.parametrize(
    ("answer", "balanced"),
    [
        ("plain", True),
        ("<think>a</think>b", True),
        ("<think>\n\n</think>\n\nb<think>c</think>", True),
        ("<think>never closed", False),
        ("closed</think>", False),
        ("<think><think></think></think>", False),
        ("</think><think>", False),
    ],
)
def test_balanced_thinking(answer, balanced):
    assert is_balanced(answer) == balanced


def test_old_thinking_is_cut_and_that_after_the_last_user_turn_is_not():
    thought = {"role": "assistant", "content": "<think>a</think>\n\n b "}
    user, tool = {"role": "user", "content": "<think>q</think>"}, {"role": "tool", "content": "r"}
    cut = {"role": "assistant", "content": "b"}
    assert without_old_thinking([user, thought, user, thought]) == [user, cut, user, thought]
    assert without_old_thinking([user, thought, tool, thought]) == [user, cut, tool, thought]
    assert without_old_thinking([user, thought]) == [user, thought]
    plain = {"role": "assistant", "content": " kept as it is "}
    assert without_old_thinking([user, plain, user]) == [user, plain, user]
