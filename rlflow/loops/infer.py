"""Batch inference: every row is asked, its answers are judged, and what becomes of them is written as soon as it is known."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from rlflow.cluster.handles import ScoreHandle
from rlflow.data.questions import Question, ask, check_length, given_answer
from rlflow.data.raw_rows import RawRows
from rlflow.data.rows import Row
from rlflow.errors import DataError, GroupLost, RewardError, RolloutError
from rlflow.loops.answers import RESERVED, AnsweredRow, failure, records_of
from rlflow.loops.requests import request_seed
from rlflow.observe.answers import AnswerFiles
from rlflow.observe.journal import Journal
from rlflow.rollout.completions import MOST_ATTEMPTS, GroupRequest, GroupSummary
from rlflow.spec.jobs import InferJob

_REPORT_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class RowNumber:
    """What is leased: a row by its number. It is read and rendered when its turn comes."""

    slot: int


class DispatchHandle(Protocol):
    """Feeds rows to the engines."""

    async def run(
        self,
        rows: Sequence[RowNumber],
        ask: Callable[[RowNumber], Awaitable[GroupRequest | None]],
        deliver: Callable[[RowNumber, GroupSummary, Any], None],
        refuse: Callable[[RowNumber, str], None],
    ) -> None:
        """Until all rows are done."""
        ...


Decode = Callable[[Any], Awaitable[list[str]]]
"""From a reference to a group to its sampled texts."""
Score = Callable[[Row, Question, Any], Awaitable[tuple[Sequence[ScoreHandle], list[str]]]]
"""From a row and a reference to a group to scores and whole answers, with what the prompt began of them."""


@dataclass(kw_only=True)
class InferLoop:
    """Asks what is not done yet."""

    spec: InferJob
    rows: RawRows
    tokenizer: Any
    dispatch: DispatchHandle
    decode: Decode
    score: Score | None
    files: AnswerFiles
    journal: Journal
    max_waiting: int
    """Groups that may wait for their rewards; then no more are asked for."""

    _asked: dict[int, tuple[Row, Question]] = field(default_factory=dict)
    _lost: list[RowNumber] = field(default_factory=list)
    """Rows whose answers are gone with a node."""
    _losses: Counter[int] = field(default_factory=Counter)
    _finishing: set[asyncio.Task[None]] = field(default_factory=set)
    _speed: "Speed" = field(default_factory=lambda: Speed())
    _row_ids: list[str] = field(default_factory=list)

    async def run(self) -> dict[str, float]:
        """Answer every row that is not done; returns what `summary` holds."""
        self._row_ids = self.rows.row_ids()
        todo = [RowNumber(i) for i, row_id in enumerate(self._row_ids) if row_id not in self.files.done]
        self.journal.begin(len(self.rows), "row")
        self._announce(len(todo))
        self._speed = Speed()
        try:
            while todo:
                await self.dispatch.run(todo, self._ask, self._deliver, self._refuse)
                await asyncio.gather(*self._finishing)
                todo, self._lost = self._lost, []
        except BaseException:
            for task in self._finishing:
                task.cancel()
            raise
        self.files.sync()
        self._report()
        self._check_failures()
        return {"rows": len(self.rows), **self.files.totals, **self._speed.figures()}

    async def _ask(self, number: RowNumber) -> GroupRequest | None:
        await self._room()
        try:
            row = self.rows[number.slot]
            question = ask(self.tokenizer, row.messages, self.spec.data, self.spec.infer.response_prefix)
            check_length(len(question.prompt_ids), self.spec.data)
        except DataError as error:
            self._refuse(number, str(error))
            return None
        self._asked[number.slot] = (row, question)
        count, seed = self.spec.infer.num_samples, None
        if self.spec.run.deterministic:
            seed = request_seed(self.spec.run.seed, 0, number.slot, 0)
        prompt_ids = np.asarray(question.prompt_ids, dtype=np.int32)
        return GroupRequest(number.slot, number.slot, prompt_ids, count, seed=seed)

    def _refuse(self, number: RowNumber, reason: str) -> None:
        self._asked.pop(number.slot, None)
        self.files.write([], [failure(self._row_ids[number.slot], self.rows.origin(number.slot), reason)])
        self._speed.failed += 1
        self._report_sometimes()

    def _deliver(self, number: RowNumber, summary: GroupSummary, arrays: Any) -> None:
        row, question = self._asked.pop(number.slot)
        self._finishing.add(asyncio.create_task(self._finish(number, row, question, summary, arrays)))

    async def _finish(self, number: RowNumber, row: Row, question: Question, summary: GroupSummary, arrays: Any) -> None:
        scores = None
        try:
            if self.score is None:
                texts = [question.answer_start + text for text in await self.decode(arrays)]
            else:
                scores, texts = await self.score(row, question, arrays)
        except GroupLost as error:
            self._lose(number, str(error))
            return
        columns = dict(row.columns)
        if (given := given_answer(row.messages, self.spec.data)) is not None:
            columns.setdefault("labels", given)
        answered = AnsweredRow(
            self._row_ids[number.slot],
            row.origin,
            question,
            columns,
            summary,
            texts,
            scores,
        )
        self.files.write(*records_of(answered, self.spec.infer))
        self._speed.add(summary, scores)
        self._report_sometimes()

    def _lose(self, number: RowNumber, reason: str) -> None:
        """The row is asked again, unless it was lost too often."""
        self._losses[number.slot] += 1
        if self._losses[number.slot] == MOST_ATTEMPTS:
            self._refuse(number, f"its answers were lost {MOST_ATTEMPTS} times: {reason}")
            return
        self.journal.note(f"{self.rows.origin(number.slot)}: its answers are lost, it is asked again: {reason}")
        self._lost.append(number)

    async def _room(self) -> None:
        """Wait until few enough groups wait for their rewards; raise what went wrong with one."""
        while len(self._finishing) >= self.max_waiting:
            await asyncio.wait(self._finishing, return_when=asyncio.FIRST_COMPLETED)
            self._take_finished()
        self._take_finished()

    def _take_finished(self) -> None:
        finished = {task for task in self._finishing if task.done()}
        self._finishing -= finished
        for task in finished:
            task.result()

    # ---- what the user sees

    def _announce(self, num_todo: int) -> None:
        if num_todo < len(self.rows):
            self.journal.note(f"{len(self.rows) - num_todo} of {len(self.rows)} rows are done already")
        replaced = [name for name in self.rows.column_names if name in RESERVED]
        if replaced:
            self.journal.note(f"columns of the data that the answers' own replace: {', '.join(replaced)}")

    def _report_sometimes(self) -> None:
        if self._speed.is_due():
            self._report()

    def _report(self) -> None:
        self.journal.step(len(self.files.done), self._speed.metrics())

    def _check_failures(self) -> None:
        """Rows that fail are recorded; if rewards fail too often, or every row did, something is wrong with the job."""
        threshold = self.spec.reward_pool.failure_threshold
        if self._speed.scored and self._speed.unscored / self._speed.scored > threshold:
            raise RewardError(
                f"rewards failed for {self._speed.unscored} of {self._speed.scored} answers, more than "
                f"reward_pool.failure_threshold = {threshold:.1%}; the reasons are in {self.files.errors}"
            )
        if self._speed.failed and self.files.totals["failed"] == len(self.rows):
            raise RolloutError(f"no row could be answered; the reasons are in {self.files.errors}")


@dataclass
class Speed:
    """Counts of this start of the run."""

    begin: float = field(default_factory=time.perf_counter)
    last_report: float = field(default_factory=time.perf_counter)
    rows: int = 0
    failed: int = 0
    scored: int = 0
    unscored: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    completions: int = 0
    clipped: int = 0
    rewards: float = 0.0

    def add(self, summary: GroupSummary, scores: Iterable[ScoreHandle] | None) -> None:
        """A row has been answered."""
        self.rows += 1
        self.prompt_tokens += summary.prompt_tokens
        self.completion_tokens += sum(summary.completion_tokens)
        self.completions += len(summary.completion_tokens)
        self.clipped += sum(reason == "length" for reason in summary.finish_reasons)
        for score in scores or ():
            self.scored += 1
            self.unscored += bool(score.failures)
            self.rewards += score.total or 0.0

    def is_due(self) -> bool:
        """Whether it is time for a report."""
        return time.perf_counter() - self.last_report >= _REPORT_EVERY_S

    def figures(self) -> dict[str, float]:
        """Seconds, and sampled tokens a second, of this start."""
        seconds = time.perf_counter() - self.begin
        return {"seconds": seconds, "tokens_per_second": self.completion_tokens / seconds}

    def metrics(self) -> dict[str, float]:
        """A row of metrics."""
        self.last_report = time.perf_counter()
        found = {"tokens_per_second": self.figures()["tokens_per_second"]}
        if self.completions:
            found["completion_tokens_mean"] = self.completion_tokens / self.completions
            found["completion_clipped_fraction"] = self.clipped / self.completions
        if self.scored > self.unscored:
            found["reward_mean"] = self.rewards / (self.scored - self.unscored)
        return found
