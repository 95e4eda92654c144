"""All rewards of a job applied to samples."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from rlflow.errors import RewardPluginError
from rlflow.rewards.api import RewardSample
from rlflow.rewards.protocol import Failed, Outcome
from rlflow.rewards.sandbox import RewardSandbox
from rlflow.spec.rewards import RewardSpec, on_processor, resolve_names, with_token_limits


@dataclass(frozen=True, slots=True)
class RewardFailure:
    """Why one reward has no value for one sample."""

    reward: str
    """Name of the reward."""
    message: str
    """One line."""
    traceback: str
    """Traceback inside the plugin; empty if its process hung or died."""


@dataclass(frozen=True, slots=True)
class SampleScore:
    """The rewards of one sample."""

    total: float | None
    """Weighted sum over the rewards that gave a value. None if none did or any failed: the sample is to be
    left out of its group."""
    by_name: dict[str, float | None]
    """Unweighted value per reward; None if the reward left the sample out or failed."""
    failures: tuple[RewardFailure, ...]
    """The rewards that failed."""


class RewardScorer:
    """Runs every reward in a process of its own, side by side; usable from several threads.

    `max_completion_tokens` stands in where a spec's `max_tokens` is null. Relative plugin paths start at
    `cwd` (default: the working directory). The constructor imports all plugins; it raises RewardPluginError
    with one line per plugin that fails, and SpecError for names taken twice and limits that do not fit.
    """

    def __init__(self, specs: Sequence[RewardSpec], *, max_completion_tokens: int, cwd: str | None = None) -> None:
        specs = [with_token_limits(spec, max_completion_tokens) for spec in specs]
        self._weights = [spec.weight for spec in specs]
        self._sandboxes = [RewardSandbox(spec, cwd or os.getcwd()) for spec in specs]
        try:
            self.names: tuple[str, ...] = tuple(resolve_names(self._start(specs)))
        except BaseException:
            self.close()
            raise

    def _start(self, specs: Sequence[RewardSpec]) -> list[RewardSpec]:
        """Start all processes; the specs come back with the names that plugins declare."""
        starting = [sandbox.start() for sandbox in self._sandboxes]
        errors = [error for future in starting if (error := future.exception()) is not None]
        unexpected = [error for error in errors if not isinstance(error, RewardPluginError)]
        if unexpected:
            raise unexpected[0]
        if errors:
            raise RewardPluginError("\n".join(map(str, errors)))
        return [
            spec.model_copy(update={"name": spec.name or future.result()}) for spec, future in zip(specs, starting, strict=True)
        ]

    def score(self, samples: Sequence[RewardSample]) -> list[SampleScore]:
        """One score per sample, in order.

        A reward that raises, hangs, dies or returns nonsense is a failure of its samples. Raises
        RewardPluginError if a plugin's process is lost and cannot be started again.
        """
        scoring = [sandbox.score(samples) for sandbox in self._sandboxes]
        outcomes_by_reward = [future.result() for future in scoring]
        return [self._combine([outcomes[index] for outcomes in outcomes_by_reward]) for index in range(len(samples))]

    def _combine(self, outcomes: Sequence[Outcome]) -> SampleScore:
        failures = tuple(
            RewardFailure(name, outcome.message, outcome.traceback)
            for name, outcome in zip(self.names, outcomes, strict=True)
            if isinstance(outcome, Failed)
        )
        values = [None if isinstance(outcome, Failed) else outcome for outcome in outcomes]
        weighted = [w * v for w, v in zip(self._weights, values, strict=True) if v is not None]
        total = sum(weighted) if weighted and not failures else None
        return SampleScore(total, dict(zip(self.names, values, strict=True)), failures)

    def close(self) -> None:
        """End all processes, after the calls in progress."""
        for sandbox in self._sandboxes:
            sandbox.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def check_plugins(specs: Sequence[RewardSpec], *, max_completion_tokens: int, cwd: str | None = None) -> tuple[str, ...]:
    """Import and build every reward once, and return their names. Raises what RewardScorer raises."""
    with RewardScorer(on_processor(specs), max_completion_tokens=max_completion_tokens, cwd=cwd) as scorer:
        return scorer.names
