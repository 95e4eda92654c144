import pytest

from rlflow.errors import RewardPluginError, SpecError, UserError
from rlflow.rewards import check_plugins, sandbox
from rlflow.spec.rewards import AccuracySpec, PluginSpec, SoftOverlongSpec


def start_error(tmp_path, *specs):
    with pytest.raises(RewardPluginError) as caught:
        check_plugins(specs, max_completion_tokens=100, cwd=str(tmp_path))
    assert isinstance(caught.value, UserError)
    return str(caught.value)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def f(:\n    pass", "SyntaxError: invalid syntax (plugin.py, line 3)"),
        ("import not_installed", "ModuleNotFoundError: No module named 'not_installed'"),
        ("sys.exit(1)", "SystemExit: 1"),
        ("os._exit(1)", "its process ended with exit status 1"),
        ("def g(): pass", "plugin.py has no 'f' (it has: g)"),
        ("f = 5", "it is a int, not something that can be called"),
        (
            "def f(sample): return 1.0",
            "it is neither marked with @rlflow.reward nor does it take `completions`",
        ),
        (
            "@rlflow.reward\ndef f(completions, solution): return 1.0",
            "a reward marked with @rlflow.reward takes one argument, this one takes (completions, solution)",
        ),
    ],
)
def test_plugins_that_cannot_be_used(write_plugin, tmp_path, source, reason):
    write_plugin(source)
    message = start_error(tmp_path, PluginSpec(target="plugin.py:f"))
    assert message.startswith(f"reward 'f' (target plugin.py:f): {reason}")
    assert "\n" not in message


def test_bad_options(write_plugin, tmp_path):
    write_plugin("""
    @rlflow.reward
    class f:
        def __init__(self, limit): pass
        def __call__(self, sample): return 1.0

    def g(completions): return [1.0]
    """)
    assert "unexpected keyword argument 'limt'" in start_error(tmp_path, PluginSpec(target="plugin.py:f", options={"limt": 1}))
    assert "`options` go to a class's constructor" in start_error(
        tmp_path, PluginSpec(target="plugin.py:g", options={"limit": 1})
    )


def test_plugins_that_do_not_exist_are_all_named_at_once(tmp_path):
    targets = ["missing.py:f", "missing.module:f", "missing-entry-point"]
    lines = start_error(tmp_path, *(PluginSpec(target=t, name=f"r{i}") for i, t in enumerate(targets))).split("\n")
    assert lines[0].startswith("reward 'r0' (target missing.py:f): there is no file ")
    assert lines[1].endswith("(target missing.module:f): ModuleNotFoundError: No module named 'missing'")
    assert "no installed package offers it as an entry point of group rlflow.rewards" in lines[2]


def test_an_import_that_hangs_is_given_up(write_plugin, tmp_path, monkeypatch):
    write_plugin("time.sleep(600)")
    monkeypatch.setattr(sandbox, "START_TIMEOUT_S", 1.5)
    message = start_error(tmp_path, PluginSpec(target="plugin.py:f"))
    assert message == "reward 'f' (target plugin.py:f): importing took longer than 1.5 s"


def test_names_and_limits_are_checked(write_plugin, tmp_path):
    write_plugin("""
    @rlflow.reward(name="accuracy")
    def f(sample): return 1.0
    """)
    plugin = PluginSpec(target="plugin.py:f")
    with pytest.raises(SpecError, match="the name 'accuracy' is already taken"):
        check_plugins([AccuracySpec(), plugin], max_completion_tokens=100, cwd=str(tmp_path))
    renamed = plugin.model_copy(update={"name": "mine"})
    names = check_plugins([AccuracySpec(), renamed], max_completion_tokens=100, cwd=str(tmp_path))
    assert names == ("accuracy", "mine")
    with pytest.raises(SpecError, match="cache_tokens"):
        check_plugins([SoftOverlongSpec(cache_tokens=200)], max_completion_tokens=100)
