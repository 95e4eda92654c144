"""The loop of batch inference; engines are a function here, rows, files and rendering are the real ones."""

import asyncio
import json
from types import SimpleNamespace

import pytest

from rlflow.data.characters import build_character_tokenizer
from rlflow.data.questions import ask
from rlflow.data.raw_rows import load_raw_rows
from rlflow.errors import GroupLost, RewardError, RolloutError
from rlflow.loops.infer import InferLoop
from rlflow.observe.answers import AnswerFiles
from rlflow.rollout.completions import GroupSummary
from rlflow.spec.load import parse_job


class Engines:
    """Answers with the prompt's number, or stops the process after some rows; the last rows come first."""

    def __init__(self, stop_after=None, refuses=()):
        self.asked, self._stop_after, self._refuses = [], stop_after, refuses

    async def run(self, rows, ask, deliver, refuse):
        for number in reversed(rows):
            if self._stop_after is not None and len(self.asked) >= self._stop_after:
                raise KeyboardInterrupt
            request = await ask(number)
            if request is None:
                continue
            self.asked.append(number.slot)
            if number.slot in self._refuses:
                refuse(number, "too long")
                continue
            count = request.num_completions
            deliver(
                number,
                GroupSummary(number.slot, number.slot, 0, 0, len(request.prompt_ids), (1,) * count, ("stop",) * count),
                number.slot,
            )
            await asyncio.sleep(0)


def loop(tmp_path, engines, score=None, lines=None, **changes):
    data = tmp_path / "rows.jsonl"
    rows = [json.dumps({"messages": [{"role": "user", "content": f"{i}+{i}"}], "n": i}) for i in range(10)]
    data.write_text("\n".join(lines or rows) + "\n")
    document = {"kind": "infer", "run": {"name": "i"}, "model": {"path": "m"}, "data": {"sources": [str(data)]}, **changes}
    job = parse_job(document)
    notes, steps = [], []
    journal = SimpleNamespace(begin=lambda *_: None, note=notes.append, step=lambda step, metrics: steps.append((step, metrics)))

    async def decode(slot):
        return [f"answer {slot}"] * job.infer.num_samples

    files = AnswerFiles(tmp_path / "out.jsonl", 1 if job.infer.keep == "best" else job.infer.num_samples)
    made = InferLoop(
        spec=job,
        rows=load_raw_rows(job.data, tmp_path / "cache"),
        tokenizer=build_character_tokenizer("0123456789+answer ABC"),
        dispatch=engines,
        decode=decode,
        score=score,
        files=files,
        journal=journal,
        max_waiting=3,
    )
    return made, files, notes, steps


def answers(tmp_path):
    return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]


def run(made, files):
    try:
        return asyncio.run(made.run())
    finally:
        files.close()


def test_every_row_gets_its_own_answer(tmp_path):
    made, files, _, steps = loop(tmp_path, Engines(), infer={"response_prefix": "A"})
    result = run(made, files)
    assert [(row["n"], row["messages"][-1]["content"]) for row in answers(tmp_path)] == [
        (i, f"Aanswer {i}") for i in range(9, -1, -1)
    ]
    assert result["rows"] == result["answers"] == 10 and result["completion_tokens"] == 10
    assert steps[-1][0] == 10 and steps[-1][1]["completion_tokens_mean"] == 1


def test_a_stopped_run_goes_on_with_what_is_not_done(tmp_path):
    first, files, _, _ = loop(tmp_path, Engines(stop_after=4))
    with pytest.raises(KeyboardInterrupt):
        run(first, files)
    second = Engines()
    made, files, notes, _ = loop(tmp_path, second)
    assert run(made, files)["answers"] == 10
    assert notes[0].endswith("of 10 rows are done already") and len(second.asked) < 10
    assert sorted(row["n"] for row in answers(tmp_path)) == list(range(10))


def test_bad_rows_and_refused_ones_are_recorded_and_stop_nothing(tmp_path):
    rows = [json.dumps({"messages": [{"role": "user", "content": text}]}) for text in ("1", "1" * 200, "2")]
    made, files, _, _ = loop(
        tmp_path,
        Engines(refuses=(3,)),
        lines=["{", *rows],
        data={"sources": [str(tmp_path / "rows.jsonl")], "max_prompt_tokens": 60},
    )
    result = run(made, files)
    assert (result["answers"], result["failed"]) == (1, 3)
    errors = [json.loads(line) for line in files.errors.read_text().splitlines()]
    assert {error["row"].partition(", ")[2]: error["error"].partition(":")[0] for error in errors} == {
        "row 1": "not valid JSON",
        "row 3": errors[-2]["error"],
        "row 4": "too long",
    }
    assert "data.max_prompt_tokens is 60" in errors[-2]["error"]


def test_answers_that_are_lost_with_a_node_are_asked_for_again(tmp_path):
    engines, lost = Engines(), [3, 7, 7]
    made, files, _, _ = loop(tmp_path, engines)
    decode = made.decode

    async def losing(slot):
        if slot in lost:
            lost.remove(slot)
            raise GroupLost("gone")
        return await decode(slot)

    made.decode = losing
    assert run(made, files)["rows"] == 10
    assert sorted(row["n"] for row in answers(tmp_path)) == list(range(10))
    assert engines.asked[10:] == [7, 3, 7] or engines.asked[10:] == [3, 7, 7]


def test_if_no_row_can_be_answered_the_job_fails(tmp_path):
    made, files, _, _ = loop(tmp_path, Engines(refuses=range(10)))
    with pytest.raises(RolloutError, match=r"no row could be answered; the reasons are in .*out\.errors\.jsonl"):
        run(made, files)


def scorer(values):
    async def score(row, question, slot):
        totals = values(slot)
        failures = [() if t is not None else [SimpleNamespace(reward="r", message="boom")] for t in totals]
        scores = [SimpleNamespace(total=t, by_name={"r": t}, failures=f) for t, f in zip(totals, failures, strict=True)]
        return scores, [f"sample {i}" for i in range(len(totals))]

    return score


REWARDED = {"rewards": [{"type": "plugin", "target": "r.py:r"}]}


def test_rejection_sampling_keeps_the_best_answer_of_each_row(tmp_path):
    infer = {"num_samples": 3, "keep": "best", "min_reward": 1}
    made, files, _, _ = loop(tmp_path, Engines(), scorer(lambda slot: [0, slot, 0.5]), infer=infer, **REWARDED)
    result = run(made, files)
    assert (result["answers"], result["dropped"]) == (9, 1)
    questions = [ask(made.tokenizer, made.rows[i].messages, made.spec.data) for i in range(10)]
    assert result["prompt_tokens"] == sum(len(question.prompt_ids) for question in questions)
    assert {row["messages"][-1]["content"] for row in answers(tmp_path)} == {"sample 1"}


def test_rewards_that_fail_too_often_fail_the_job(tmp_path):
    made, files, _, _ = loop(tmp_path, Engines(), scorer(lambda slot: [None if slot < 5 else 1]), **REWARDED)
    with pytest.raises(RewardError, match=r"rewards failed for 5 of 10 answers"):
        run(made, files)
    assert len(answers(tmp_path)) == 5
