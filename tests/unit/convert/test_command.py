"""Shell text as people paste it."""

import pytest

from rlflow.convert.command import read_command
from rlflow.errors import UserError

KNOWN = "swift sft, swift rlhf, swift infer, swift export, megatron sft"


def test_variables_comments_quotes_and_continued_lines():
    command = read_command("""
        # 4 * 60GB
        NPROC_PER_NODE=4 \\
        CUDA_VISIBLE_DEVICES='0,1,2,3' \\
        swift sft \\
            --dataset 'a/b#500' "c d.jsonl" e/f:x#7 \\
            --response_prefix '<think>\\n\\n</think>\\n\\n'  # a comment
    """)
    assert command.variables == {"NPROC_PER_NODE": "4", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    assert command.name == "swift sft"
    assert command.arguments == (
        *("--dataset", "a/b#500", "c d.jsonl", "e/f:x#7"),
        *("--response_prefix", r"<think>\n\n</think>\n\n"),
    )
    assert command.left_out == ()


def test_variables_exported_above_are_put_in():
    command = read_command("export MODEL=org/m RANKS=8\nNNODES=$RANKS swift sft --model ${MODEL} --output_dir $HOME/x")
    assert command.variables == {"MODEL": "org/m", "RANKS": "8", "NNODES": "8"}
    assert command.arguments == ("--model", "org/m", "--output_dir", "$HOME/x"), "what is not known here stays as it is"


def test_other_commands_and_redirections_are_left_out_by_name():
    command = read_command("cd work && nohup swift sft --model m > out.log 2>&1 | tee 'a log' &")
    assert command.arguments == ("--model", "m")
    assert command.left_out == ("cd work", "> out.log", "2>&1", "tee 'a log'")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "convert: one swift or megatron command is wanted, found: none"),
        ("swift sft --a 1; swift infer", "convert: one swift or megatron command is wanted, found: swift sft, swift infer"),
        ("swift web-ui", f"convert: swift web-ui: cannot be converted; known are {KNOWN}"),
        ("swift", f"convert: swift: cannot be converted; known are {KNOWN}"),
        ("swift sft \\\n --system 'open", 'convert: line 2: the quote that begins there is not closed: "\'open"'),
    ],
)
def test_what_cannot_be_read(text, line):
    with pytest.raises(UserError) as caught:
        read_command(text)
    assert str(caught.value) == line
