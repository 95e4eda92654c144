import time

import pytest


def values(scores):
    assert [score.failures for score in scores] == [()] * len(scores)
    return [score.total for score in scores]


@pytest.fixture
def samples(make_sample):
    return [make_sample(text, index=i, solution=str(i)) for i, text in enumerate(["a", "bb", "ccc"])]


def test_one_by_one(score_with, samples):
    source = """
    @rlflow.reward
    def f(sample: rlflow.RewardSample) -> float | None:
        return None if sample.sample_index == 1 else sample.completion_tokens
    """
    scores = score_with(source, samples, weight=0.5)
    assert values(scores) == [0.5, None, 1.5]
    assert [score.by_name for score in scores] == [{"f": 1.0}, {"f": None}, {"f": 3.0}]


def test_batched(score_with, samples):
    source = """
    @rlflow.reward(name="share", batched=True)
    def f(samples):
        whole = sum(sample.completion_tokens for sample in samples)
        return [sample.completion_tokens / whole for sample in samples]
    """
    scores = score_with(source, samples)
    assert values(scores) == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert list(scores[0].by_name) == ["share"]


def test_async_samples_run_at_the_same_time(score_with, make_sample):
    source = """
    @rlflow.reward
    async def f(sample):
        await asyncio.sleep(0.5)
        return sample.sample_index
    """
    started = time.monotonic()
    assert values(score_with(source, [make_sample(index=i) for i in range(20)])) == list(range(20))
    assert time.monotonic() - started < 5.0  # one after the other: 10 s


def test_async_batched(score_with, samples):
    source = """
    @rlflow.reward(batched=True)
    async def f(samples):
        return await asyncio.gather(*(asyncio.sleep(0.01, s.completion_tokens) for s in samples))
    """
    assert values(score_with(source, samples)) == [1.0, 2.0, 3.0]


def test_async_clients_keep_their_event_loop(score_with, samples, write_plugin, tmp_path):
    from rlflow.rewards import RewardScorer
    from rlflow.spec.rewards import PluginSpec

    write_plugin("""
    loops = set()

    @rlflow.reward
    async def f(sample):
        loops.add(asyncio.get_running_loop())
        return len(loops)
    """)
    spec = PluginSpec(target="plugin.py:f")
    with RewardScorer([spec], max_completion_tokens=100, cwd=str(tmp_path)) as scorer:
        assert [values(scorer.score(samples)) for _ in range(2)] == [[1.0] * 3] * 2


def test_class_with_options(score_with, samples):
    source = """
    @rlflow.reward(name="longer")
    class f:
        def __init__(self, limit, bonus=0.0):
            self.limit, self.bonus = limit, bonus

        def __call__(self, sample):
            return self.bonus + (sample.completion_tokens > self.limit)
    """
    assert values(score_with(source, samples, options={"limit": 2, "bonus": 0.5})) == [0.5, 0.5, 1.5]


def test_async_class(score_with, samples):
    source = """
    @rlflow.reward
    class f:
        async def __call__(self, sample):
            return sample.completion_tokens
    """
    assert values(score_with(source, samples)) == [1.0, 2.0, 3.0]


def test_trl_function_unchanged(score_with, samples):
    source = """
    def f(prompts, completions, completion_ids, solution, **kwargs):
        assert prompts == ["<user>1+1?"] * 3 and completion_ids == [[0], [0, 1], [0, 1, 2]]
        return [None if s == "2" else len(c) + int(s) for c, s in zip(completions, solution)]
    """
    assert values(score_with(source, samples)) == [1.0, 3.0, None]


def test_trl_function_without_kwargs_gets_what_it_names(score_with, samples):
    source = """
    def f(completions, solution, threshold=1):
        return [len(c) > threshold for c in completions]
    """
    assert values(score_with(source, samples)) == [0.0, 1.0, 1.0]


def test_conversational_trl_function_unchanged(score_with, samples):
    source = """
    def f(prompts, completions, **kwargs):
        assert prompts[0][-1]["content"] == "1+1?"
        return [len(completion[0]["content"]) for completion in completions]
    """
    assert values(score_with(source, samples, completions="messages")) == [1.0, 2.0, 3.0]


def test_async_trl_function_unchanged(score_with, samples):
    source = """
    async def f(completions, **kwargs):
        await asyncio.sleep(0.01)
        return [len(c) for c in completions]
    """
    assert values(score_with(source, samples)) == [1.0, 2.0, 3.0]


def test_ms_swift_class_unchanged(score_with, make_sample):
    source = """
    class ORM:
        def __init__(self, args, **kwargs):
            self.args = args

    class f(ORM):
        def __call__(self, completions, solution, **kwargs):
            assert kwargs["messages"][0][-1] == {"role": "assistant", "content": "a"}
            assert kwargs["finish_reason"] == ["stop", "length"] and kwargs["is_truncated"] == [False, True]
            assert [len(ids) for ids in kwargs["response_token_ids"]] == [1, 200]
            return [self.args.scale * (c == s) for c, s in zip(completions, solution)]
    """
    batch = [make_sample("a", solution="a"), make_sample("b" * 200, index=1, solution="c")]
    assert values(score_with(source, batch, options={"scale": 3})) == [3.0, 0.0]


def test_columns_that_some_rows_lack_are_none(score_with, make_sample):
    source = """
    def f(completions, task, **kwargs):
        return [None if t is None else 1.0 for t in task]
    """
    assert values(score_with(source, [make_sample(task="sum"), make_sample(index=1)])) == [1.0, None]


def test_plugins_print_and_log_freely(score_with, samples, capfd):
    source = """
    print("importing")

    @rlflow.reward
    def f(sample):
        print("scoring", sample.completion)
        sys.stdout.buffer.write(bytes(range(256)))
        sys.stdin.read()
        return 1.0
    """
    assert values(score_with(source, samples)) == [1.0, 1.0, 1.0]
    written = capfd.readouterr().out
    assert "importing" in written and "scoring ccc" in written


def test_plugin_files_import_their_neighbours_and_modules_are_found_in_cwd(score_with, samples, tmp_path):
    (tmp_path / "neighbour.py").write_text("SCALE = 2.0\n")
    source = """
    import neighbour

    @rlflow.reward
    def f(sample):
        return neighbour.SCALE
    """
    assert values(score_with(source, samples[:1])) == [2.0]
    assert values(score_with(source, samples[:1], target="plugin:f")) == [2.0]


def test_entry_points_of_installed_packages(score_with, samples, tmp_path, monkeypatch):
    package = tmp_path / "site"
    (package / "offer-1.0.dist-info").mkdir(parents=True)
    (package / "offer-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: offer\nVersion: 1.0\n")
    (package / "offer-1.0.dist-info" / "entry_points.txt").write_text("[rlflow.rewards]\nlong-one = offer:f\n")
    (package / "offer.py").write_text("def f(completions, **kwargs):\n    return [len(c) for c in completions]\n")
    monkeypatch.syspath_prepend(str(package))
    scores = score_with("", samples, target="long-one")
    assert values(scores) == [1.0, 2.0, 3.0]
    assert list(scores[0].by_name) == ["long_one"]
