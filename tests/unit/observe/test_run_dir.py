import json
import os

import pytest

from rlflow.observe.run_dir import RunDirectory


@pytest.fixture
def run(tmp_path):
    directory = RunDirectory(tmp_path / "runs" / "my_run")
    directory.create("kind: sft  # mine\n", {"kind": "sft", "run": {"seed": 7}, "rewards": ({"weight": 1.0},)})
    return directory


def checkpoint(run, step):
    folder = run.begin_checkpoint(step)
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_text(f"weights of {step}")
    return run.commit_checkpoint(step)


def steps_of(rows):
    return [row["step"] for row in rows]


def test_create_keeps_the_spec_as_written_and_adds_versions(run):
    assert (run.path / "spec.yaml").read_text() == "kind: sft  # mine\n"
    resolved = json.loads((run.path / "resolved.json").read_text())
    assert resolved["spec"]["run"]["seed"] == 7
    assert {"torch", "ray", "transformers", "pydantic"} <= set(resolved["versions"])
    assert {"git_revision", "python"} <= set(resolved)
    assert run.exists and not RunDirectory(run.path.parent / "other").exists


def test_spec_differences_name_the_fields(run):
    same = {"kind": "sft", "run": {"seed": 7}, "rewards": [{"weight": 1.0}]}
    assert run.spec_differences(same) == []
    assert run.spec_differences({**same, "run": {"seed": 8}}) == ["run.seed"]
    changed = {"run": {"seed": 7, "name": "x"}, "rewards": [{"weight": 2.0}]}
    assert run.spec_differences({**same, **changed}) == ["run.name", "rewards[0].weight"]
    assert run.spec_differences({**same, "rewards": []}) == ["rewards"]


def test_status_keeps_what_is_not_given(run):
    assert run.read_status() is None
    run.write_status("starting", total_steps=20, ray_job_id="raysubmit_1")
    run.write_status("running", step=3)
    run.write_status("failed", message="reward accuracy failed")
    status = run.read_status()
    assert (status.state, status.step, status.total_steps) == ("failed", 3, 20)
    assert (status.message, status.ray_job_id) == ("reward accuracy failed", "raysubmit_1")
    assert status.pid == os.getpid() and status.started <= status.time
    run.write_status("starting")
    assert run.read_status().message is None and run.read_status().step == 3


def test_status_refuses_unknown_fields(run):
    with pytest.raises(TypeError, match="stpe"):
        run.write_status("running", stpe=3)


def test_metrics_are_readable_after_every_row(run):
    for step in (1, 2):
        run.append_metrics({"step": step, "loss": float("nan")})
        assert run.read_metrics()[-1] == {"step": step, "loss": None}
    with pytest.raises(ValueError, match="lss"):
        run.append_metrics({"step": 3, "lss": 1.0})
    assert steps_of(run.read_metrics()) == [1, 2]


def test_half_a_line_of_a_killed_driver_does_not_count(run):
    run.append_metrics({"step": 1})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert steps_of(run.read_metrics()) == [1]
    assert run.supersede_after(1) is None
    run.append_metrics({"step": 2})
    assert steps_of(run.read_metrics()) == [1, 2]


def test_completions_lie_by_step(run):
    path = run.write_completions(10, [{"prompt": "1+1", "completion": "2", "rewards": {"accuracy": 1.0}}])
    run.write_completions(2, [])
    assert path == run.path / "completions" / "step-000010.jsonl"
    assert json.loads(path.read_text())["rewards"] == {"accuracy": 1.0}
    assert list(run.completion_files()) == [2, 10]


def test_only_complete_checkpoints_exist(run):
    assert run.latest_checkpoint() is None
    final = checkpoint(run, 5)
    assert final == run.path / "checkpoints" / "step-000005"
    assert sorted(path.name for path in final.iterdir()) == ["COMPLETE", "model"]
    (run.begin_checkpoint(10) / "part").write_text("killed while it was written")
    (run.path / "checkpoints" / "step-000015").mkdir()  # killed between the renaming and the mark
    assert run.latest_checkpoint() == (5, final)


def test_remains_of_a_crash_go_on_resume_and_do_not_hinder_the_next_checkpoint(run):
    checkpoint(run, 5)
    (run.begin_checkpoint(10) / "part").write_text("killed while it was written")
    (run.path / "checkpoints" / "step-000015").mkdir()
    run.supersede_after(5)
    assert [path.name for path in (run.path / "checkpoints").iterdir()] == ["step-000005"]
    (run.begin_checkpoint(10) / "part").write_text("once more")
    assert list(run.begin_checkpoint(10).iterdir()) == []
    (run.path / "checkpoints" / "step-000010").mkdir()
    assert run.commit_checkpoint(10) == run.latest_checkpoint()[1]


def test_a_checkpoint_is_marked_only_after_its_files_reached_the_disk(run, monkeypatch):
    flushed = []
    fsync = os.fsync

    def recording(descriptor):
        flushed.append((os.readlink(f"/proc/self/fd/{descriptor}"), run.latest_checkpoint() is not None))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recording)
    final = checkpoint(run, 5)
    partial = run.path / "checkpoints" / ".step-000005.partial"
    for path in (partial / "model" / "weights", partial / "model", partial, final.parent):
        assert (str(path), False) in flushed
    assert flushed[-1] == (str(final), True)


def test_rotation_keeps_the_newest_the_protected_and_the_linked(run):
    for step in (1, 2, 3, 4, 5):
        checkpoint(run, step)
    run.link_model(1)
    assert run.rotate(2, {2}) == [3]
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == [f"step-00000{step}" for step in (1, 2, 4, 5)]
    assert (run.path / "model" / "weights").read_text() == "weights of 1"
    assert run.rotate(2) == [2]


def test_rotation_never_removes_the_last(run):
    checkpoint(run, 1)
    assert run.rotate(1) == []
    with pytest.raises(AssertionError):
        run.rotate(0)


def test_model_link_follows_a_moved_run(run, tmp_path):
    checkpoint(run, 5)
    checkpoint(run, 10)
    run.link_model(5)
    assert str(run.link_model(10).readlink()) == "checkpoints/step-000010/model"
    run.path.rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "model" / "weights").read_text() == "weights of 10"


def test_supersede_takes_back_all_that_came_later(run):
    for step in range(1, 8):
        run.append_metrics({"step": step, "loss": float(step)})
    for step in (2, 4, 6):
        run.write_completions(step, [{"prompt": str(step)}])
        checkpoint(run, step)
    run.link_model(6)
    target = run.supersede_after(4)
    assert target.parent == run.path / "superseded"
    assert steps_of(run.read_metrics()) == [1, 2, 3, 4]
    assert steps_of(RunDirectory(target).read_metrics()) == [5, 6, 7]
    assert list(run.completion_files()) == [2, 4]
    assert list(RunDirectory(target).completion_files()) == [6]
    assert run.latest_checkpoint()[0] == 4
    assert RunDirectory(target).latest_checkpoint()[0] == 6
    assert not (run.path / "model").is_symlink()


def test_nothing_to_take_back_makes_no_folder_and_two_rollbacks_make_two(run):
    run.append_metrics({"step": 1})
    assert run.supersede_after(1) is None
    assert not (run.path / "superseded").exists()
    first = run.supersede_after(0)
    run.append_metrics({"step": 1})
    assert run.supersede_after(0) != first
    assert run.read_metrics() == []


def test_the_best_checkpoint_is_that_of_the_best_evaluation(run):
    for step, figures in {
        2: {"eval_loss": 0.5},
        4: {"eval_loss": 0.2, "eval_accuracy": 0.9},
        6: None,
        8: {"eval_loss": 0.2},
    }.items():
        run.begin_checkpoint(step)
        run.commit_checkpoint(step, figures)
    assert run.best_checkpoint("eval_loss", "min") == (4, 0.2), "of equal ones the first"
    assert run.best_checkpoint("eval_loss", "max") == (2, 0.5)
    assert run.best_checkpoint("eval_accuracy", "max") == (4, 0.9)
    assert run.best_checkpoint("eval_reward", "max") is None
    run.supersede_after(2)
    assert run.best_checkpoint("eval_loss", "min") == (2, 0.5), "one that was taken back is none"
