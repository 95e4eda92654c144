"""From a spec to something callable, with the way it wants to be called."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from rlflow.errors import RewardPluginError
from rlflow.rewards.api import RewardMark, mark_of
from rlflow.rewards.columns import ColumnFunction, takes_columns
from rlflow.rewards.loading import load_target
from rlflow.rewards.protocol import CallMode
from rlflow.spec.rewards import (
    AccuracySpec,
    CosineSpec,
    FormatSpec,
    JudgeSpec,
    ModelRewardSpec,
    PluginSpec,
    RepetitionSpec,
    RewardSpec,
    SoftOverlongSpec,
)


@dataclass(frozen=True, slots=True)
class BoundReward:
    """A reward ready to be called: with a sample, or in mode BATCH with a list of samples."""

    function: Callable[[Any], Any]
    mode: CallMode
    is_async: bool
    declared_name: str | None = None


def bind_reward(spec: RewardSpec, cwd: str) -> BoundReward:
    """Build the reward a spec asks for.

    Raises RewardPluginError if a plugin does not exist or is not callable as any kind of reward; what its
    import or constructor raises goes through.
    """
    if isinstance(spec, PluginSpec):
        return _bind_plugin(spec, cwd)
    if isinstance(spec, ModelRewardSpec):
        from rlflow.rewards.model import ModelReward

        return BoundReward(ModelReward(spec), CallMode.BATCH, is_async=False)
    if isinstance(spec, JudgeSpec):
        from rlflow.rewards.judge import JudgeReward

        return BoundReward(JudgeReward(spec), CallMode.CONCURRENT, is_async=True)
    return BoundReward(_build_builtin(spec), CallMode.ONE_BY_ONE, is_async=False)


def _build_builtin(spec: RewardSpec) -> Callable[[Any], float | None]:
    if isinstance(spec, FormatSpec):
        from rlflow.rewards.format import FormatReward

        return FormatReward(spec)
    if isinstance(spec, SoftOverlongSpec):
        from rlflow.rewards.soft_overlong import SoftOverlongReward

        return SoftOverlongReward(spec)
    if isinstance(spec, RepetitionSpec):
        from rlflow.rewards.repetition import RepetitionReward

        return RepetitionReward(spec)
    if isinstance(spec, CosineSpec):
        from rlflow.rewards.cosine import CosineReward

        return CosineReward(spec)
    from rlflow.rewards.accuracy import AccuracyReward

    assert isinstance(spec, AccuracySpec)
    return AccuracyReward(spec)


def _bind_plugin(spec: PluginSpec, cwd: str) -> BoundReward:
    target = load_target(spec.target, cwd)
    mark = mark_of(target)
    function = _instantiate(target, spec.options, mark) if inspect.isclass(target) else target
    if not callable(function):
        raise RewardPluginError(f"it is a {type(function).__name__}, not something that can be called")
    if spec.options and function is target:
        raise RewardPluginError("`options` go to a class's constructor, but this is no class")
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
    if mark is None:
        return _bind_column_function(function, spec, is_async)
    _check_takes_one_argument(function)
    mode = CallMode.CONCURRENT if is_async else CallMode.ONE_BY_ONE
    return BoundReward(function, CallMode.BATCH if mark.batched else mode, is_async, mark.name)


def _instantiate(target: type, options: dict[str, Any], mark: RewardMark | None) -> Any:
    # ms-swift hands its reward classes one object with all training arguments.
    wants_args = mark is None and "args" in inspect.signature(target).parameters and "args" not in options
    return target(args=SimpleNamespace(**options)) if wants_args else target(**options)


def _bind_column_function(function: Callable[..., Any], spec: PluginSpec, is_async: bool) -> BoundReward:
    if not takes_columns(function):
        raise RewardPluginError("it is neither marked with @rlflow.reward nor does it take `completions` as TRL's functions do")
    return BoundReward(ColumnFunction(function, spec.completions), CallMode.BATCH, is_async)


def _check_takes_one_argument(function: Callable[..., Any]) -> None:
    signature = inspect.signature(function)
    try:
        signature.bind(None)
    except TypeError as error:
        raise RewardPluginError(f"a reward marked with @rlflow.reward takes one argument, this one takes {signature}") from error
