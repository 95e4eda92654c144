import pytest

from rlflow.data.text_stream import StreamedText

TEXT = "Grüße aus München, 你好，世界 🙂<|im_end|>"


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_pieces_make_the_text_and_hold_no_broken_character(byte_level, size):
    ids = byte_level(TEXT, add_special_tokens=False)["input_ids"]
    stream = StreamedText(byte_level)
    pieces = [stream.add(ids[i : i + size]) for i in range(0, len(ids), size)]
    assert "�" not in "".join(pieces)
    assert "".join([*pieces, stream.finish()]) == stream.text == TEXT.removesuffix("<|im_end|>")


def test_a_completion_cut_inside_a_character_says_so_at_the_end(byte_level):
    ids = byte_level("ab🙂", add_special_tokens=False)["input_ids"][:-1]
    stream = StreamedText(byte_level)
    assert stream.add(ids) == "ab"
    assert stream.finish() == "�" and stream.text == byte_level.decode(ids)
