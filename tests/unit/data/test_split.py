import pytest

from rlflow.data.sources import load_sources
from rlflow.data.split import split_held_out
from rlflow.errors import DataError
from rlflow.spec.data import DataSpec


def split(tmp_path, path, **fields):
    spec = DataSpec(sources=(path,), **fields)
    return split_held_out(load_sources(spec, tmp_path / "cache"), spec)


def numbers(rows):
    return [row.columns["number"] for row in rows]


@pytest.fixture
def path(write_jsonl):
    return write_jsonl([{"query": f"q{number}", "number": number} for number in range(100)])


@pytest.mark.parametrize(("held_out", "count"), [(0, 0), (7, 7), (0.1, 10), (0.001, 1)])
def test_rows_or_a_fraction_are_held_out(tmp_path, path, held_out, count):
    training, evaluation = split(tmp_path, path, held_out=held_out)
    assert len(evaluation) == count
    assert sorted(numbers(training) + numbers(evaluation)) == list(range(100))


def test_the_split_depends_on_the_seed_alone(tmp_path, path):
    first, again, other = (
        numbers(split(tmp_path, path, held_out=10, **fields)[1])
        for fields in ({"seed": 1}, {"seed": 1, "shuffle": False, "max_tokens": 9}, {"seed": 2})
    )
    assert first == again != other


def test_repeats_of_a_held_out_row_are_not_trained_on(tmp_path, path):
    training, evaluation = split(tmp_path, path + "#350", held_out=10)
    assert len(evaluation) == 10
    assert set(numbers(training)).isdisjoint(numbers(evaluation))
    assert len(set(numbers(training))) == 90


def test_holding_out_everything_is_refused(tmp_path, path):
    with pytest.raises(DataError, match=r"data.held_out: 100 leaves nothing to train on; there are 100"):
        split(tmp_path, path, held_out=100)


def test_a_source_may_have_its_own_share(tmp_path, write_jsonl, path):
    other = write_jsonl([{"query": f"q{number}", "number": number} for number in range(100, 150)], "other.jsonl")
    validation = write_jsonl([{"query": "v", "number": 1000}], "validation.jsonl")
    sources = (path, {"type": "file", "path": other, "held_out": 0.2}, {"type": "file", "path": validation, "held_out": "all"})
    spec = DataSpec(sources=sources, held_out=5)
    training, evaluation = split_held_out(load_sources(spec, tmp_path / "cache"), spec)
    found = sorted(numbers(evaluation))
    assert [len([n for n in found if low <= n < high]) for low, high in ((0, 100), (100, 150), (1000, 1001))] == [5, 10, 1]
    assert sorted(numbers(training) + found) == [*range(150), 1000]


def test_a_source_that_is_held_out_whole_leaves_nothing(tmp_path, path):
    spec = DataSpec(sources=({"type": "file", "path": path, "held_out": "all"},))
    with pytest.raises(DataError, match="no row is left to train on"):
        split_held_out(load_sources(spec, tmp_path / "cache"), spec)
