"""A generative judge behind a local HTTP server: what it is asked, retries, limits, and answers that hold no number."""

import asyncio
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from rlflow.data.characters import build_character_tokenizer
from rlflow.errors import EngineDied, RewardPluginError, RolloutError
from rlflow.rewards import RewardScorer
from rlflow.rollout.chat_endpoint import ChatEndpoint
from rlflow.rollout.completions import Completion, CompletionGroup
from rlflow.spec.rewards import JudgeSpec, RewardSpec

TOKENIZER = build_character_tokenizer("0123456789=.")


class Judge:
    """An endpoint that answers with what `reply` makes of the prompt: text, or a status to fail with."""

    def __init__(self, reply):
        self.requests, self.headers, self.times, self.in_flight, self.most_in_flight = [], [], [], 0, 0
        lock, judge = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    judge.requests.append((self.path, body))
                    judge.headers.append(self.headers)
                    judge.times.append(time.monotonic())
                    judge.in_flight += 1
                    judge.most_in_flight = max(judge.most_in_flight, judge.in_flight)
                answer = reply(body["messages"][0]["content"])
                with lock:
                    judge.in_flight -= 1
                status = answer if isinstance(answer, int) else 200
                self.send_response(status)
                self.end_headers()
                if status == 200:
                    self.wfile.write(json.dumps({"choices": [{"message": {"content": answer}}]}).encode())

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def serve():
    judges = []

    def start(reply):
        judges.append(Judge(reply))
        return judges[-1]

    yield start
    for judge in judges:
        judge.close()


def spec(judge, **fields):
    template = "Q: {prompt} gold: {solution} A: {completion}"
    return JudgeSpec(**{"endpoint": judge.endpoint, "model": "j", "prompt": template, "backoff_s": 0.05, **fields})


def score(samples, *specs):
    with RewardScorer(specs, max_completion_tokens=100) as scorer:
        return scorer.score(samples)


def test_the_judge_sees_the_template_filled_and_the_last_number_counts(serve, make_sample, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    judge = serve(lambda text: f"Thinking. Reward: 0.1? No.\nReward: {0.75 if 'A: two' in text else -1}")
    scores = score(
        [make_sample("two", solution="2"), make_sample("six", solution="2")],
        spec(judge, weight=2.0, api_key_variable="JUDGE_KEY", temperature=0.5, max_tokens=9),
    )
    assert [s.by_name["judge"] for s in scores] == [0.75, -1.0]
    assert scores[0].total == 1.5
    assert {path for path, _ in judge.requests} == {"/v1/chat/completions"}
    body = next(body for _, body in judge.requests if "two" in body["messages"][0]["content"])
    message = {"role": "user", "content": "Q: 1+1? gold: 2 A: two"}
    assert body == {"model": "j", "messages": [message], "temperature": 0.5, "max_tokens": 9}
    assert judge.headers[0]["Authorization"] == "Bearer secret"


def test_an_answer_without_number_is_a_failure_of_its_sample_alone(serve, make_sample):
    judge = serve(lambda text: "I cannot tell" if "A: bad" in text else "Reward: 1")
    good, bad = score([make_sample("good", solution=""), make_sample("bad", solution="")], spec(judge))
    assert good.total == 1.0 and not good.failures
    assert bad.total is None and "does not match the pattern: 'I cannot tell'" in bad.failures[0].message
    assert len(judge.requests) == 2, "it is not asked again"


def test_a_busy_judge_is_asked_again_after_growing_pauses(serve, make_sample):
    statuses = [503, 429]
    judge = serve(lambda text: statuses.pop() if statuses else "Reward: 1")
    (result,) = score([make_sample("x", solution="")], spec(judge, backoff_s=0.2))
    assert result.total == 1.0
    first, second = (after - before for before, after in zip(judge.times, judge.times[1:], strict=False))
    assert first >= 0.2 and second >= 0.4


@pytest.mark.parametrize(("status", "tries"), [(500, 3), (404, 1)])
def test_retries_are_bounded_and_only_where_they_may_help(serve, make_sample, status, tries):
    judge = serve(lambda text: status)
    (result,) = score([make_sample("x", solution="")], spec(judge, max_retries=2))
    assert result.total is None
    assert f"({tries} tries): status {status}" in result.failures[0].message
    assert len(judge.requests) == tries


def test_nobody_listens(serve, make_sample):
    judge = serve(lambda text: "")
    judge.close()
    (result,) = score([make_sample("x", solution="")], spec(judge, max_retries=1))
    assert "(2 tries)" in result.failures[0].message and "refused" in result.failures[0].message


def test_requests_in_flight_and_their_time_are_limited(serve, make_sample):
    def slow(text):
        time.sleep(5 if "A: hang" in text else 0.1)
        return "Reward: 1"

    judge = serve(slow)
    answers = ["hang", *"abcdefgh"]
    scores = score(
        [make_sample(a, solution="") for a in answers], spec(judge, max_concurrent=3, request_timeout_s=0.8, max_retries=0)
    )
    assert judge.most_in_flight <= 3
    assert "timed out" in scores[0].failures[0].message
    assert [s.total for s in scores[1:]] == [1.0] * 8


def test_the_whole_limit_ends_waiting_and_retries(serve, make_sample):
    judge = serve(lambda text: 503)
    (result,) = score([make_sample("x", solution="")], spec(judge, backoff_s=30, timeout_s=0.5))
    assert "no result within 0.5 s" in result.failures[0].message


def test_a_column_that_is_missing_is_named(serve, make_sample):
    judge = serve(lambda text: "Reward: 1")
    (result,) = score([make_sample("x")], spec(judge))
    assert "there is no 'solution' among completion, prompt" in result.failures[0].message


def test_a_missing_key_is_found_at_the_start(serve):
    judge = serve(lambda text: "Reward: 1")
    with pytest.raises(RewardPluginError, match="the environment has no NO_SUCH_KEY"):
        RewardScorer([spec(judge, api_key_variable="NO_SUCH_KEY")], max_completion_tokens=1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"endpoint": "localhost:8000"}, "endpoint"),
        ({"prompt": "{prompt}"}, "nothing to judge"),
        ({"prompt": "{completion} {"}, "not a template"),
        ({"pattern": "Reward"}, "exactly one group"),
        ({"pattern": "("}, "not a regular expression"),
    ],
)
def test_mistakes_name_the_field(fields, message):
    good = {"type": "judge", "endpoint": "http://h/v1", "model": "j", "prompt": "{completion}"}
    adapter: TypeAdapter[RewardSpec] = TypeAdapter(RewardSpec)
    adapter.validate_python(good)
    with pytest.raises(ValidationError, match=message):
        adapter.validate_python({**good, **fields})


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "set exactly one of endpoint and engine"),
        ({"endpoint": "http://a/v1", "engine": {}}, "set exactly one of endpoint and engine"),
        ({"engine": {}, "api_key_variable": "KEY"}, "an engine of the job asks for no key"),
    ],
)
def test_a_judge_is_at_one_place(fields, reason):
    with pytest.raises(ValidationError, match=reason):
        JudgeSpec(model="j", prompt="{completion}", **fields)


class Engine:
    """Answers with a number, refuses a long prompt, and dies of a very long one."""

    async def generate(self, request):
        if len(request.prompt_ids) > 500:
            raise EngineDied("out of memory")
        if len(request.prompt_ids) > 200:
            raise RolloutError("the prompt is too long")
        assert (request.temperature, request.max_tokens) == (0.5, 9)
        token_ids = np.asarray(TOKENIZER("=0.25")["input_ids"], dtype=np.int32)
        completion = Completion(token_ids, None, "stop")
        return CompletionGroup(0, request.prompt_id, 0, 0, request.prompt_ids, (completion,))


def test_an_engine_is_asked_like_any_endpoint(make_sample):
    """The endpoint that the job puts before an engine: what it is asked, and what it refuses."""

    async def ask():
        endpoint = ChatEndpoint(Engine(), TOKENIZER, "127.0.0.1")
        reward = JudgeSpec(
            endpoint=endpoint.url, model="j", prompt="{completion}", pattern="=([0-9.]+)", temperature=0.5, max_tokens=9,
            max_retries=1, backoff_s=0,
        )  # fmt: skip
        samples = [make_sample("1"), make_sample("2" * 300), make_sample("3" * 600)]
        return await asyncio.to_thread(score, samples, reward)

    good, too_long, deadly = asyncio.run(ask())
    assert good.total == 0.25
    assert "status 400 the prompt is too long" in too_long.failures[0].message and "(1 tries)" in too_long.failures[0].message
    assert "(2 tries): status 503 out of memory" in deadly.failures[0].message
