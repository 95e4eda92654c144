"""What the runner does without Ray: every mistake of the issue's list ends there, with exit code 2 and one line that says where
and what to do; and a run that is finished is not run again.
"""

import io
import json
import logging
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from rlflow.data.characters import build_character_tokenizer
from rlflow.jobs import run
from rlflow.jobs.prepare import load_questions
from rlflow.observe.run_dir import RunDirectory
from rlflow.spec.load import load_job, resolved
from tests.integration.job_runs import MODEL, grpo_spec, sft_spec, write_job


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory of a user. Connecting to Ray fails the test; what the runner does to the logger is undone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "connect", lambda: pytest.fail("Ray was started"))
    logger = logging.getLogger("rlflow")
    before = logger.handlers[:], logger.level, logger.propagate
    yield tmp_path
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.fixture
def refused(folder, capsys):
    """What the runner prints as it refuses a spec."""

    def refuse(spec, *overrides, lines: int = 1) -> str:
        code = run.main([str(write_job(folder, spec)), *overrides])
        out, err = capsys.readouterr()
        assert code == 2, out + err
        assert "Traceback" not in out + err
        assert len(err.strip().splitlines()) == lines, err
        return err

    return refuse


def rows(folder, *values):
    (folder / "rows.jsonl").write_text("".join(v if isinstance(v, str) else json.dumps(v) + "\n" for v in values))
    return {"sources": ["rows.jsonl"], "max_prompt_tokens": 32, "max_tokens": 48}


def chat(question, answer="1"):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def test_wrong_spec(refused):
    spec = sft_spec(batch_siez=3)
    del spec["batch_size"]
    assert re.search(r"batch_siez: unknown field; did you mean batch_size", refused(spec))


def test_several_mistakes_are_all_named(refused):
    spec = grpo_spec(steps=0, prompts_per_step="many")
    assert "steps" in (message := refused(spec, lines=2)) and "prompts_per_step" in message


def test_missing_file(refused):
    spec = sft_spec(data={"sources": ["nowhere.jsonl"], "max_tokens": 48})
    assert "data.sources[0].path" in (message := refused(spec)) and "nowhere.jsonl" in message


def test_malformed_row(folder, refused):
    spec = sft_spec(data=rows(folder, chat("1+1"), {"messages": [{"role": "user", "content": ""}]}))
    assert re.search(r"rows\.jsonl, row 2", refused(spec))


def test_broken_json_line(folder, refused):
    spec = sft_spec(data=rows(folder, chat("1+1"), "{not json\n"))
    assert re.search(r"rows\.jsonl.*row 2", refused(spec))


def test_prompt_longer_than_the_limit(folder, refused):
    spec = grpo_spec(data=rows(folder, chat("1+1"), chat("1" * 60)))
    message = refused(spec)
    assert "row 2" in message and "data.max_prompt_tokens" in message


def test_answer_beyond_the_limit_of_a_job_that_distils_it(folder, refused):
    data = rows(folder, chat("1+1"), chat("1+2", "1" * 60))
    build_character_tokenizer(MODEL["random"]["characters"]).save_pretrained(folder / "teacher")
    del (spec := grpo_spec(kind="gkd", data=data, teacher={"path": "teacher"}))["rewards"]
    message = refused(spec)
    assert "row 2" in message and "data.max_tokens" in message


def test_rows_of_a_later_job_whose_model_is_still_to_come(folder, capsys):
    bad = rows(folder, chat("1+1"), {"messages": [{"role": "user", "content": ""}]})
    first, second = sft_spec(), sft_spec(run={"name": "second"}, model={"from_run": "warm"}, data=bad)
    assert run.main([str(write_job(folder, spec)) for spec in (first, second)]) == 2
    assert re.search(r"rows\.jsonl, row 2", capsys.readouterr().err)


def test_tokenizer_without_chat_template(folder, refused):
    tokenizer = build_character_tokenizer("0123456789+")
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder / "bare")
    random = {**MODEL["random"], "tokenizer": "bare"}
    del random["characters"]
    message = refused(sft_spec(model={"dtype": "float32", "random": random}))
    assert "chat template" in message and "data.chat_template" in message


def test_plugin_that_does_not_import(folder, refused):
    (folder / "broken.py").write_text("import a_module_that_is_not_there\n")
    spec = grpo_spec(rewards=[{"type": "plugin", "target": "broken.py:score"}])
    assert "broken.py:score" in (message := refused(spec)) and "a_module_that_is_not_there" in message


def test_plugins_and_files_that_are_missing_are_named_together(folder, refused):
    (folder / "some.py").write_text("def other(completions): return [1.0 for _ in completions]\n")
    targets = ["some.py:score", "none.py:score"]
    rewards = [{"type": "accuracy"}, *({"type": "plugin", "target": target, "name": f"r{i}"} for i, target in enumerate(targets))]
    message = refused(grpo_spec(rewards=rewards, data={"sources": ["no.jsonl"], "max_prompt_tokens": 32}), lines=3)
    assert "data.sources[0].path: there is no file no.jsonl" in message
    assert "rewards[1].target: reward 'r0' (target some.py:score): some.py has no 'score' (it has: other)" in message
    assert "rewards[2].target: reward 'r1' (target none.py:score): there is no file" in message


def test_answers_beyond_what_the_model_can_read(folder, refused):
    rows(folder, chat("1+1"))
    infer = {"kind": "infer", "run": {"name": "answers"}, "model": MODEL, "data": {"sources": ["rows.jsonl"]}}
    assert refused(infer).startswith(
        "data.max_prompt_tokens + rollout.max_completion_tokens: 3072 tokens are more than the model"
    )


def test_a_second_driver(folder, refused):
    spec = sft_spec(data=rows(folder, chat("1+1")))
    with RunDirectory(folder / "runs" / spec["run"]["name"]).lock():
        assert "is writing this run" in refused(spec)


def test_missing_run(refused):
    spec = grpo_spec(model={"from_run": "never"})
    assert "model.from_run" in refused(spec)


@pytest.mark.parametrize("kind", ["dpo", "rm", "kto"])
def test_malformed_preferences(folder, refused, kind):
    good = {"prompt": "1+1", "chosen": "2", "rejected": "3"}
    spec = sft_spec(data=rows(folder, good, {**good, "prompt": "1+2", "rejected": "2"}), kind=kind)
    if kind == "kto":
        spec["kto"] = {"unpair_rows": True}
    assert re.search(r"rows\.jsonl, row 2: the chosen and the rejected answer are the same", refused(spec))


def test_preferences_without_rejected_answer(folder, refused):
    spec = sft_spec(data=rows(folder, chat("1+1")), kind="dpo")
    assert re.search(r"rows\.jsonl.*rejected_response", refused(spec))


def test_a_reward_model_that_is_none(folder, refused):
    spec = grpo_spec(rewards=[{"type": "model", "path": "runs/nowhere/model"}])
    assert "rewards[0].path: there is no directory runs/nowhere/model" in refused(spec)
    (folder / "empty").mkdir()
    spec = grpo_spec(rewards=[{"type": "model", "path": "empty"}])
    assert "reward 'model'" in (message := refused(spec)) and "config.json" in message


@pytest.mark.parametrize(("kind", "role"), [("gkd", "teacher"), ("ppo", "critic")])
def test_a_second_model_of_another_vocabulary_or_none(folder, refused, kind, role):
    build_character_tokenizer("0123456789+-=").save_pretrained(folder / "other")
    message = refused(grpo_spec(kind=kind, **{role: {"path": "other"}}))
    assert message.startswith(f"{role}: ") and "another vocabulary than model" in message
    assert refused(grpo_spec(kind=kind, **{role: {"from_run": "nothing"}})).startswith(f"{role}.from_run: nothing has no model")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"run": {"name": "warm", "device": "gpu"}, "learner": {"num_ranks": 8}}, "run.device"),
        ({"learner": {"num_ranks": 5}}, "learner.num_ranks"),
    ],
)
def test_more_devices_than_the_cluster_holds(monkeypatch, refused, fields, field):
    monkeypatch.setattr(run, "connect", lambda: {"CPU": 2.0})
    assert field in refused(sft_spec(**fields))


def test_a_relative_run_dir_in_a_ray_job(monkeypatch, refused):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert refused(sft_spec()).startswith("run.dir: runs is relative, but a Ray job's working directory is a private copy")


@pytest.fixture
def finished(folder):
    """The spec of a run that has succeeded."""
    path = write_job(folder, sft_spec())
    directory = RunDirectory(folder / "runs" / "warm")
    directory.create(path.read_text(), resolved(load_job(str(path), [])))
    directory.write_status("succeeded")
    return path


def test_a_finished_run_is_not_run_again(finished, capsys):
    assert run.main([str(finished)]) == 0
    assert "warm: has been done already" in capsys.readouterr().out


def test_another_spec_under_the_same_name(finished, capsys):
    assert run.main([str(finished), "steps=7"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("run.name: ") and "(other at steps)" in line
    assert run.main([str(finished), "steps=7", "run.seed=5", "learner.optimizer.learning_rate=0.5"]) == 2
    assert "(other at run.seed, learner.optimizer.learning_rate, steps)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "row", "shown"),
    [
        ("sft", {"eval_accuracy": 0.25, "eval_loss": 3.0}, ("expected held-out accuracy", 0.25)),
        ("grpo", {"eval_accuracy": 0.25, "eval_reward": 2.0}, ("held-out accuracy", 0.25)),
        ("grpo", {"eval_reward": 2.0}, ("held-out reward", 2.0)),
        ("dpo", {"eval_loss": 0.5, "eval_preference_accuracy": 0.75}, ("held-out preference accuracy", 0.75)),
        ("sft", {"loss": 0.5}, ("expected held-out accuracy", None)),
    ],
)
def test_the_closing_table_shows_what_was_measured_on_held_out_rows(tmp_path, kind, row, shown):
    directory = RunDirectory(tmp_path / "x")
    directory.create("", {})
    directory.write_status("starting", started=1000.0)
    directory.append_metrics({"step": 0, **dict.fromkeys(row, 0.0)})
    directory.append_metrics({"step": 1, **row})
    directory.write_status("succeeded", time=1062.5)
    summary = run._summary(directory, SimpleNamespace(kind=kind, run=SimpleNamespace(name="x", keep_best=None)))
    assert (summary.metric, summary.after) == shown
    assert summary.before == (None if shown[1] is None else 0.0)
    assert summary.time_s == 62.5, "also of a run that was done before"


def test_a_message_stays_a_line_however_narrow_the_terminal(capsys):
    logger = logging.Logger("a test's own")
    logger.addHandler(run._ConsoleHandler(Console(width=20, file=io.StringIO())))
    logger.info("[bold]" + "x" * 50)
    (handler,) = logger.handlers
    assert handler._console.file.getvalue() == "[bold]" + "x" * 50 + "\n"


def test_streamed_rows_are_checked_too_and_read_anew_until_something_was_trained(folder, refused):
    data = {**rows(folder, chat("1+1"), {"messages": "x"}), "streaming": {"buffer_rows": 2}}
    assert re.search(r"rows.jsonl, row 2: ", refused(sft_spec(data=data)))
    rows(folder, chat("1+1"), chat("1+2"), {"messages": "x"})
    spec = sft_spec(data={**data, "streaming": {"buffer_rows": 3}})
    assert re.search(r"rows.jsonl, row 3: ", refused(spec))
    rows(folder, chat("1+1"), chat("1+2" * 99), chat("1"))
    assert re.search(r"rows.jsonl, row 2: .* more than data.max_tokens", refused(spec)), "not the rows of the start before"


def test_a_second_driver_leaves_the_windows_of_the_first_alone(folder, refused):
    data = {**rows(folder, chat("1+1"), chat("1+2")), "streaming": {"buffer_rows": 2}}
    spec = sft_spec(data=data)
    first = RunDirectory(folder / "runs" / spec["run"]["name"])
    window = first.path / "data" / "stream-x" / "000000000000.arrow"
    window.parent.mkdir(parents=True)
    window.touch()
    with first.lock():
        assert "is writing this run" in refused(spec)
    assert window.exists()


def test_a_plugin_that_takes_the_name_of_another_reward(folder, refused):
    code = "@rlflow.reward(name='accuracy')\ndef {}(sample):\n    return 1.0\n\n"
    (folder / "some.py").write_text("import rlflow\n\n" + code.format("one") + code.format("two"))
    one, two = ({"type": "plugin", "target": f"some.py:{name}"} for name in ("one", "two"))
    data = rows(folder, chat("1+1"))
    message = refused(grpo_spec(rewards=[{"type": "accuracy"}, one], data=data))
    assert message.startswith("rewards[1]: the name 'accuracy' is already taken by rewards[0]")
    message = refused(grpo_spec(rewards=[{"type": "format"}, one, two], data=data))
    assert message.startswith("rewards[2]: the name 'accuracy' is already taken by rewards[1]")


def test_a_finished_run_whose_rows_or_answers_changed_is_refused(folder, refused):
    (folder / "rows.jsonl").write_text('{"query": "1+1"}\n')
    spec = {"kind": "infer", "run": {"name": "answers"}, "model": MODEL, "rollout": {"max_completion_tokens": 8}}
    spec |= {"data": {"sources": ["rows.jsonl"], "max_prompt_tokens": 32}, "infer": {"output": "out.jsonl"}}
    path = write_job(folder, spec)
    job, directory = load_job(str(path), []), RunDirectory(folder / "runs" / "answers")
    directory.create(path.read_text(), resolved(job))
    directory.write_rows(load_questions(job, directory).digests())
    directory.write_status("succeeded")
    assert "infer.output: " in (message := refused(spec)) and "is gone" in message
    (folder / "out.jsonl").write_text("")
    assert run.main([str(path)]) == 0
    (folder / "rows.jsonl").write_text('{"query": "1+1"}\n{"query": "2+2"}\n')
    assert "rows.jsonl has changed since" in refused(spec)
