"""Batch inference: engines with the model's own weights, and no learner."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from rlflow.actors.reward_samples import PromptRow
from rlflow.actors.rollout import RolloutSetup
from rlflow.cluster.closing import close_run
from rlflow.cluster.devices import DevicePlan, plan_devices
from rlflow.cluster.dispatch import Dispatch
from rlflow.cluster.failure import unless_lost
from rlflow.cluster.ledger import PromptLedger
from rlflow.cluster.placement import Placement
from rlflow.cluster.reward_group import RewardGroup
from rlflow.cluster.rollout_group import RolloutGroup
from rlflow.data.questions import Question
from rlflow.data.raw_rows import RawRows
from rlflow.data.rows import Row
from rlflow.jobs.adapters import merged_model
from rlflow.jobs.context import JobContext
from rlflow.jobs.earlier_runs import output_path
from rlflow.jobs.prepare import PreparedModel, engine_settings, prepare_model
from rlflow.jobs.rewards import judge_devices, reward_setup, score_on_devices
from rlflow.loops.infer import InferLoop
from rlflow.observe.answers import AnswerFiles
from rlflow.observe.run_dir import RunDirectory
from rlflow.rollout.model_settings import with_model_settings
from rlflow.spec.jobs import InferJob


async def run_infer_job(job: InferJob, context: JobContext) -> None:
    """Answer every row, or what an earlier start has left of them."""
    rows = context.rows[0]
    assert isinstance(rows, RawRows)
    if context.run.read_rows() is None:
        context.run.write_rows(rows.digests())
    model = _prepare(job, context.run)
    devices = infer_devices(job, context.machine.device)
    placement = Placement(job.run.name, devices)
    rollouts = RolloutGroup(placement, devices, _rollout_setup(job, model, context), max_restarts=job.run.max_restarts)
    rewards = RewardGroup(placement, devices, reward_setup(job, model, context), max_restarts=job.run.max_restarts)
    files = AnswerFiles(output_path(job), 1 if job.infer.keep == "best" else job.infer.num_samples)
    try:
        if rewards.holds_devices:  # before the engine looks for what is free
            await rewards.ready()
        await context.journal.timed("rollout engines", rollouts.start_missing)()
        await rewards.ready()
        context.run.supersede_after(len(files.done))
        result = await InferLoop(
            spec=job,
            rows=rows,
            tokenizer=model.tokenizer,
            dispatch=_Dispatch(rollouts, _groups_in_flight(job)),
            decode=_decoder(model.tokenizer),
            score=_scorer(rewards) if job.rewards else None,
            files=files,
            journal=context.journal,
            max_waiting=4 * _groups_in_flight(job) * job.rollout.num_workers,
        ).run()
        context.run.write_result(result)
    finally:
        files.close()
        await close_run(placement, rollouts, rewards)


def infer_devices(job: InferJob, device: Literal["gpu", "cpu"]) -> DevicePlan:
    """Engines, and reward workers if there are rewards."""
    return plan_devices(
        device=device,
        learner_ranks=0,
        rollout_workers=job.rollout.num_workers,
        tensor_parallel_size=job.rollout.tensor_parallel_size,
        reward_workers=job.reward_pool.num_workers if job.rewards else 0,
        rewards_on_devices=score_on_devices(job, device),
        judges=judge_devices(job),
    )


def _prepare(job: InferJob, run: RunDirectory) -> PreparedModel:
    model = prepare_model(job, run)
    if job.adapter is None:
        return model
    return replace(
        model, path=merged_model(model.path, job.adapter, job.model.dtype, Path(job.run.dir), run.path / "merged_model")
    )


class _Dispatch:
    """Rows through a ledger; engines that have all died are started again."""

    def __init__(self, rollouts: RolloutGroup, groups_in_flight: int) -> None:
        self._rollouts, self._groups_in_flight = rollouts, groups_in_flight

    async def run(self, rows: Sequence[Any], ask: Any, deliver: Any, refuse: Any) -> None:
        dispatch = Dispatch(self._rollouts, groups_in_flight=self._groups_in_flight, ask=ask, deliver=deliver, refuse=refuse)
        await dispatch.run(PromptLedger(rows), self._recover)

    async def _recover(self) -> None:
        await self._rollouts.start_missing()


def _decoder(tokenizer: Any) -> Any:
    async def decode(arrays: Any) -> list[str]:
        group = await unless_lost(arrays)
        return tokenizer.backend_tokenizer.decode_batch([list(c.token_ids) for c in group.completions])  # as reward workers do

    return decode


def _scorer(rewards: RewardGroup) -> Any:
    async def score(row: Row, question: Question, arrays: Any) -> tuple[list[Any], list[str]]:
        asked = PromptRow(question.messages, question.text, row.columns, question.answer_start)
        scores, texts = await rewards.score(asked, arrays)
        return scores, await texts

    return score


def _rollout_setup(job: InferJob, model: PreparedModel, context: JobContext) -> RolloutSetup:
    return RolloutSetup(
        model_path=model.path,
        rollout=engine_settings(with_model_settings(job.rollout, model.path), job.model),
        dtype=job.model.dtype,
        max_model_tokens=job.data.max_prompt_tokens + job.rollout.max_completion_tokens,
        seed=job.run.seed,
        can_sleep=False,
        load_weights=True,
        num_threads=context.machine.threads(job.rollout.num_workers),
    )


def _groups_in_flight(job: InferJob) -> int:
    """Enough groups an engine to keep all its sequences busy, and half as many waiting in it."""
    return max(2, 3 * job.rollout.max_num_seqs // (2 * job.infer.num_samples))
