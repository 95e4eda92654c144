"""One reward in a process that may hang or die without harm."""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from rlflow.errors import RewardPluginError
from rlflow.rewards.api import RewardSample
from rlflow.rewards.calling import describe_timeout
from rlflow.rewards.process import ProcessLostError, RewardProcess
from rlflow.rewards.protocol import CallMode, Failed, Outcome, Outcomes, Ready, Start, StartFailed
from rlflow.spec.rewards import ModelRewardSpec, PluginSpec, RewardSpec, default_name

START_TIMEOUT_S = 60.0
CONCURRENT_GRACE_S = 2.0


class RewardSandbox:
    """Scores lists of samples with one reward; a lost process is replaced when the next call needs it.

    Everything runs on one thread of its own, which lives as long as the sandbox: the process dies with the
    thread that started it, and callers' threads come and go.
    """

    def __init__(self, spec: RewardSpec, cwd: str) -> None:
        self._spec = spec
        self._cwd = cwd
        self._process: RewardProcess | None = None
        self._mode = CallMode.ONE_BY_ONE
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"reward-{default_name(spec)}")

    def start(self) -> Future[str | None]:
        """Start the process; the result is the name the plugin declares for itself.

        The future raises RewardPluginError if the reward cannot be imported or built.
        """
        return self._thread.submit(self._start)

    def score(self, samples: Sequence[RewardSample]) -> Future[list[Outcome]]:
        """One outcome per sample, in order."""
        return self._thread.submit(self._score, samples)

    def close(self) -> None:
        """End the process after the calls in progress."""
        self._thread.submit(self._close).result()
        self._thread.shutdown()

    def _start(self) -> str | None:
        process = RewardProcess(self._cwd)
        try:
            process.send(Start(self._spec, self._cwd))
            loads_model = isinstance(self._spec, ModelRewardSpec)
            limit_s = max(START_TIMEOUT_S, self._spec.timeout_s) if loads_model else START_TIMEOUT_S
            answer = process.receive(limit_s, f"importing took longer than {limit_s:g} s")
        except ProcessLostError as lost:
            process.kill()
            raise RewardPluginError(f"{self._describe()}: {lost}") from lost
        if isinstance(answer, StartFailed):
            process.close()
            raise RewardPluginError(f"{self._describe()}: {answer.reason}")
        assert isinstance(answer, Ready)
        self._process, self._mode = process, answer.mode
        return answer.declared_name

    def _describe(self) -> str:
        target = f" (target {self._spec.target})" if isinstance(self._spec, PluginSpec) else ""
        return f"reward '{default_name(self._spec)}'{target}"

    def _score(self, samples: Sequence[RewardSample]) -> list[Outcome]:
        outcomes: Outcomes = {}
        while pending := [index for index in range(len(samples)) if index not in outcomes]:
            answered = self._score_until_lost([samples[index] for index in pending])
            outcomes |= {pending[position]: outcome for position, outcome in answered.items()}
        return [outcomes[index] for index in range(len(samples))]

    def _score_until_lost(self, samples: Sequence[RewardSample]) -> Outcomes:
        """Outcomes by position: of all samples, or if the process is lost of at least the first of them."""
        if self._process is None:
            self._start()
        assert self._process is not None
        outcomes: Outcomes = {}
        try:
            self._process.send(samples)
            self._receive_into(outcomes, len(samples), self._process)
        except ProcessLostError as lost:
            self._process.kill()
            self._process = None
            unanswered = [position for position in range(len(samples)) if position not in outcomes]
            # One by one, the first without an answer is the culprit; the others get another process.
            guilty = unanswered[:1] if self._mode is CallMode.ONE_BY_ONE else unanswered
            outcomes |= dict.fromkeys(guilty, Failed(str(lost)))
        return outcomes

    def _receive_into(self, outcomes: Outcomes, num_samples: int, process: RewardProcess) -> None:
        limit_s = self._spec.timeout_s + (CONCURRENT_GRACE_S if self._mode is CallMode.CONCURRENT else 0.0)
        deadline = time.monotonic() + limit_s
        while len(outcomes) < num_samples:
            remaining_s = deadline - time.monotonic()
            outcomes |= process.receive(remaining_s, describe_timeout(self._spec.timeout_s))
            if self._mode is CallMode.ONE_BY_ONE:
                deadline = time.monotonic() + limit_s

    def _close(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None
