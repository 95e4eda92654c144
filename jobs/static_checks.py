"""Problems of a spec that can be found without starting anything."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from rlflow.data.chat import read_template
from rlflow.data.files import list_files
from rlflow.data.hugging_face_hub import may_be_id
from rlflow.data.modelscope_hub import check_modelscope
from rlflow.errors import RewardPluginError, SpecError, UserError
from rlflow.jobs.adapters import find_adapter
from rlflow.jobs.earlier_runs import output_path, waits_for_answers, with_answers
from rlflow.jobs.prepare import model_path, run_directory
from rlflow.jobs.rewards import judges, reward_models
from rlflow.learner.quantization import check_bitsandbytes
from rlflow.observe.answers import errors_path
from rlflow.observe.run_dir import RunDirectory
from rlflow.rewards import check_plugins
from rlflow.rewards.loading import make_importable
from rlflow.spec.jobs import DpoJob, InferJob, Job, RolloutJob
from rlflow.spec.load import resolved
from rlflow.spec.model import ModelSpec
from rlflow.spec.preferences import PluginLossSpec
from rlflow.spec.rewards import ModelRewardSpec, PluginSpec, resolve_names, with_token_limits
from rlflow.spec.sources import FileSource, SelfCognitionSource

_NAMED_FIELDS = 5
"""Of the fields in which a spec is another one."""


def static_problems(job: Job, earlier_runs: Sequence[str] = ()) -> list[str]:
    """Missing files, runs and plugins, limits that contradict each other: one line each."""
    problems: list[str] = []
    for check in (
        _check_run,
        _check_template,
        _check_sources,
        _check_hubs,
        _check_quantisation,
        _check_rewards,
        _check_plugins,
        _check_losses,
        _check_output,
    ):
        try:
            check(job)
        except UserError as error:
            problems += str(error).splitlines()
    if not waits_for_answers(job, earlier_runs):
        try:
            with_answers(job)
        except UserError as error:
            problems.append(str(error))
    for field, model in all_models(job).items():
        if model.from_run is not None and model.from_run not in earlier_runs:
            try:
                model_path(model, Path(job.run.dir), field)
            except UserError as error:
                problems.append(str(error))
    return problems


def all_models(job: Job) -> dict[str, ModelSpec]:
    """The job's models by the name of their field."""
    models = {"model": job.model, **job.other_models}
    return models | (reward_models(job) if isinstance(job, RolloutJob | InferJob) else {})


def check_same_spec(run: RunDirectory, job: Job) -> None:
    """Raises `SpecError` if the run directory holds a run of another spec."""
    fields = run.spec_differences(resolved(job)) if run.exists else []
    if fields:
        named = ", ".join(fields[:_NAMED_FIELDS]) + (", …" if len(fields) > _NAMED_FIELDS else "")
        raise SpecError(
            f"run.name: {run.path} holds a run of another spec (other at {named}); choose another run.name, or remove it"
        )


def _check_run(job: Job) -> None:
    check_same_spec(run_directory(job), job)


def _check_template(job: Job) -> None:
    if job.data.chat_template is not None:
        read_template(job.data.chat_template)


def _check_sources(job: Job) -> None:
    lines: list[str] = []
    for index, source in enumerate(job.data.sources):
        if isinstance(source, FileSource | SelfCognitionSource) and source.path is not None:
            try:
                list_files(source.path, f"data.sources[{index}].path")
            except UserError as error:
                lines.append(str(error))
    if lines:
        raise UserError("\n".join(lines))


def _check_hubs(job: Job) -> None:
    hubs = {f"data.sources[{index}]": getattr(source, "hub", None) for index, source in enumerate(job.data.sources)}
    hubs |= {field: model.hub for field, model in all_models(job).items()}
    for field, hub in hubs.items():
        if hub == "modelscope":
            check_modelscope(f"{field}.hub")


def _check_quantisation(job: Job) -> None:
    if job.model.is_quantised:
        check_bitsandbytes()


def _check_rewards(job: Job) -> None:
    if not isinstance(job, RolloutJob | InferJob):
        return
    lines: list[str] = []
    for index, reward in enumerate(job.rewards):
        try:
            with_token_limits(reward, job.rollout.max_completion_tokens)
        except UserError as error:
            lines.append(f"rewards[{index}]: {error}")
    paths = {f"rewards[{i}].path": reward.path for i, reward in enumerate(job.rewards) if isinstance(reward, ModelRewardSpec)}
    for field, model in (paths | {field: judge.model for field, (judge, _) in judges(job).items()}).items():
        if model and not may_be_id(model) and not Path(model).is_dir():
            lines.append(f"{field}: there is no directory {model}")
    if lines:
        raise UserError("\n".join(lines))


def _check_plugins(job: Job) -> None:
    """Plugins are imported, in processes of their own: a missing file or function, and what an import raises, is found. So is a
    name that two rewards have.
    """
    if not isinstance(job, RolloutJob | InferJob):
        return
    plugins = {f"rewards[{i}].target": reward for i, reward in enumerate(job.rewards) if isinstance(reward, PluginSpec)}
    if not plugins:
        return
    try:
        tokens = job.rollout.max_completion_tokens
        names = iter(check_plugins(list(plugins.values()), max_completion_tokens=tokens, cwd=os.getcwd()))
    except RewardPluginError as error:
        raise UserError("\n".join(_with_field(line, plugins) for line in str(error).splitlines())) from None
    except SpecError as error:  # two plugins have one name; they were counted among themselves
        places = [field.removesuffix(".target") for field in plugins]
        raise SpecError(re.sub(r"rewards\[(\d+)\]", lambda match: places[int(match[1])], str(error))) from None
    named = [each.model_copy(update={"name": next(names)}) if isinstance(each, PluginSpec) else each for each in job.rewards]
    resolve_names(named)


def _with_field(line: str, plugins: dict[str, PluginSpec]) -> str:
    """The line after its field; lines come in the order of `plugins`, which are used up."""
    field = next((field for field, plugin in plugins.items() if f"(target {plugin.target})" in line), None)
    if field is None:
        return line
    del plugins[field]
    return f"{field}: {line}"


def _check_output(job: Job) -> None:
    if not isinstance(job, InferJob):
        return
    output = output_path(job)
    if output.suffix != ".jsonl":
        raise SpecError(f"infer.output: {output} does not end in .jsonl")
    if not run_directory(job).exists:
        for path in (output, errors_path(output)):
            if path.exists():
                raise SpecError(f"infer.output: {path} exists; choose another file, or remove it")
    if job.adapter is not None:
        find_adapter(job.adapter, Path(job.run.dir))


def _check_losses(job: Job) -> None:
    if not isinstance(job, DpoJob):
        return
    from rlflow.algorithms.pair_losses import load_function

    make_importable(os.getcwd())  # as reward plugins, and as Ray lets its workers
    for index, loss in enumerate(job.dpo.losses):
        if isinstance(loss, PluginLossSpec):
            try:
                load_function(loss.target)
            except Exception as error:  # an import runs the user's code
                reason = f"{type(error).__name__}: {error}"
                raise UserError(f"dpo.losses[{index}].target: cannot import {loss.target}: {reason}") from None
