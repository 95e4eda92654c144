"""Which checkpoints are written, which stay, and which is called the best."""

import asyncio
from pathlib import Path

import pytest

from rlflow.cluster.checkpoints import Checkpoints
from rlflow.errors import SpecError
from rlflow.observe.run_dir import RunDirectory
from rlflow.spec.run import RunSpec


class Learner:
    """Writes nothing; the folders are what is looked at."""

    async def save(self, state, model, client_state):
        for folder in (state, model):
            Path(folder).mkdir()

    async def load(self, state):
        return {"from": state}


def checkpoints(folder, **fields):
    spec = RunSpec.model_validate({"name": "try", "save_every": 10, "keep_checkpoints": 1, **fields})
    return Checkpoints(RunDirectory(folder / "try"), Learner(), spec)


def save(kept, accuracies):
    """Walk over steps with these evaluations, as a loop does."""
    for step, accuracy in accuracies.items():
        metrics = {"loss": 1.0} if accuracy is None else {"loss": 1.0, "eval_accuracy": accuracy}
        if kept.is_due(step, metrics, is_last=False):
            asyncio.run(kept.save(step, {"step": step}, metrics))


def steps(folder):
    return sorted(int(path.name[-2:]) for path in (folder / "try" / "checkpoints").iterdir())


BEST = {"keep_best": {"metric": "eval_accuracy"}}


def test_the_best_checkpoint_is_written_at_once_and_outlives_the_rotation(tmp_path):
    kept = checkpoints(tmp_path, **BEST)
    save(kept, {5: 0.5, 7: 0.8, 9: 0.6, 10: None, 20: 0.7, 30: 0.8})
    assert steps(tmp_path) == [7, 30], "an equal one later is no better"
    assert RunDirectory(tmp_path / "try").read_status().best == {"step": 7, "eval_accuracy": 0.8}
    save(kept, {31: 0.9})
    assert steps(tmp_path) == [31]


def test_only_the_newest_checkpoint_keeps_its_training_state(tmp_path):
    def contents():
        return {
            int(path.name[-2:]): sorted(entry.name for entry in path.iterdir() if entry.is_dir())
            for path in (tmp_path / "try" / "checkpoints").iterdir()
        }

    save(checkpoints(tmp_path, keep_checkpoints=2, keep_only_models=True), {10: None, 20: None, 30: None})
    assert contents() == {20: ["model"], 30: ["model", "state"]}
    RunDirectory(tmp_path / "try").remove_states()  # as at the end of a run
    assert contents() == {20: ["model"], 30: ["model"]}


def test_less_may_be_better(tmp_path):
    save(checkpoints(tmp_path, keep_best={"metric": "eval_accuracy", "mode": "min"}), {5: 0.5, 7: 0.8, 10: 0.6, 20: 0.7})
    assert steps(tmp_path) == [5, 20]


def test_a_figure_that_is_no_number_is_never_the_best(tmp_path):
    save(checkpoints(tmp_path, **BEST), {5: float("nan"), 10: float("nan"), 20: 0.1, 30: 0.0})
    assert steps(tmp_path) == [20, 30]


def test_without_keep_best_only_the_newest_stay(tmp_path):
    save(checkpoints(tmp_path), {5: 0.5, 10: 0.9, 20: 0.1})
    assert steps(tmp_path) == [20]
    assert RunDirectory(tmp_path / "try").read_status() is None


def test_a_resumed_run_knows_its_best(tmp_path):
    save(checkpoints(tmp_path, **BEST), {5: 0.5, 10: 0.4})
    run = RunDirectory(tmp_path / "try")
    run.write_status("starting")
    resumed = checkpoints(tmp_path, **BEST)
    asyncio.run(resumed.restore())
    assert run.read_status().best == {"step": 5, "eval_accuracy": 0.5}
    assert not resumed.is_due(12, {"eval_accuracy": 0.5}, is_last=False)
    assert resumed.is_due(12, {"eval_accuracy": 0.6}, is_last=False)


@pytest.mark.parametrize(
    ("metrics", "gives"), [({"eval_digits": 1.0}, "eval_digits"), ({}, "nothing: there are no held-out rows")]
)
def test_a_metric_that_is_not_evaluated_is_refused_before_training(tmp_path, metrics, gives):
    with pytest.raises(SpecError, match=f"run.keep_best.metric: eval_accuracy is not evaluated; the evaluation gives {gives}"):
        checkpoints(tmp_path, **BEST).check_evaluation(metrics)
    checkpoints(tmp_path, **BEST).check_evaluation({"eval_accuracy": 0.5})
    checkpoints(tmp_path).check_evaluation(metrics)
