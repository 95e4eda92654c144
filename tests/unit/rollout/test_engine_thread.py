"""The thread around a vLLM engine, with an engine whose steps the test decides."""

import asyncio
import queue
from types import SimpleNamespace

import pytest

from rlflow.errors import EngineDied
from rlflow.rollout.engine_thread import EngineThread


class ScriptedEngine:
    """Finishes requests in the steps it is told to."""

    def __init__(self):
        self.requests, self.aborted, self.log = [], [], []
        self.steps = queue.SimpleQueue()
        self.engine_core = SimpleNamespace(shutdown=lambda: self.log.append("shutdown"))

    def add_request(self, request_id, prompt, sampling):
        if prompt == "too long":
            raise ValueError("the prompt is too long")
        self.requests.append(request_id)

    def abort_request(self, request_ids):
        self.aborted += request_ids
        self.requests = [r for r in self.requests if r not in request_ids]

    def has_unfinished_requests(self):
        return bool(self.requests)

    def step(self):
        finished = self.steps.get(timeout=10)
        if isinstance(finished, Exception):
            raise finished
        self.requests = [r for r in self.requests if r not in finished]
        return [SimpleNamespace(request_id=r, finished=r in finished) for r in [*self.requests, *finished]]


async def stepping(engine, awaitable):
    """The result, while the engine steps without finishing anything."""
    task = asyncio.ensure_future(awaitable)
    while not task.done():
        engine.steps.put([])
        await asyncio.sleep(0.001)
    return task.result()


def run(scenario):
    async def within():
        engine = ScriptedEngine()
        thread = EngineThread(lambda: engine)
        await thread.started()
        try:
            await asyncio.wait_for(scenario(engine, thread), 20)
        finally:
            await thread.close(10)
            assert engine.log == ["shutdown"]

    asyncio.run(within())


def test_outputs_come_as_they_finish():
    async def scenario(engine, thread):
        first, second = (asyncio.create_task(thread.generate(name, "prompt", None)) for name in "ab")
        while len(engine.requests) < 2:
            engine.steps.put([])
            await asyncio.sleep(0)
        engine.steps.put(["b"])
        assert (await second).request_id == "b"
        assert not first.done()
        engine.steps.put(["a"])
        assert (await first).request_id == "a"

    run(scenario)


def test_calls_run_between_steps_and_their_errors_are_the_callers():
    async def scenario(engine, thread):
        running = asyncio.create_task(thread.generate("a", "prompt", None))
        while not engine.requests:
            await asyncio.sleep(0)
        assert await stepping(engine, thread.call(lambda engine: list(engine.requests))) == ["a"]
        with pytest.raises(ZeroDivisionError):
            await stepping(engine, thread.call(lambda engine: 1 / 0))
        engine.steps.put(["a"])
        assert (await running).finished

    run(scenario)


def test_a_refused_request_leaves_the_others_alone():
    async def scenario(engine, thread):
        with pytest.raises(ValueError, match="too long"):
            await thread.generate("a", "too long", None)
        engine.steps.put(["b"])
        assert (await thread.generate("b", "prompt", None)).finished

    run(scenario)


def test_a_cancelled_request_is_aborted():
    async def scenario(engine, thread):
        running = asyncio.create_task(thread.generate("a", "prompt", None))
        while not engine.requests:
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stepping(engine, running)
        await stepping(engine, thread.call(lambda engine: None))
        assert engine.aborted == ["a"]

    run(scenario)


def test_a_failed_step_is_the_end_for_everyone():
    async def scenario(engine, thread):
        running = asyncio.create_task(thread.generate("a", "prompt", None))
        engine.steps.put(RuntimeError("out of memory"))
        with pytest.raises(EngineDied, match="the engine died: RuntimeError: out of memory"):
            await running
        with pytest.raises(EngineDied):
            await thread.generate("b", "prompt", None)
        with pytest.raises(EngineDied):
            await thread.call(lambda engine: None)

    run(scenario)


def test_an_engine_that_does_not_start_says_why():
    def fail():
        raise ValueError("no such model")

    async def scenario():
        await EngineThread(fail).started()

    with pytest.raises(ValueError, match="no such model"):
        asyncio.run(scenario())


def test_a_stream_gives_every_output_and_then_ends():
    async def scenario(engine, thread):
        outputs = []

        async def read():
            async for output in thread.stream("a", "prompt", None):
                outputs.append(output.finished)

        reading = asyncio.create_task(read())
        while len(outputs) < 2:
            engine.steps.put([])
            await asyncio.sleep(0.001)
        engine.steps.put(["a"])
        await reading
        assert outputs[:2] == [False, False] and outputs[-1] and engine.aborted == []

    run(scenario)


def test_a_stream_that_is_left_is_aborted():
    async def scenario(engine, thread):
        stream = thread.stream("a", "prompt", None)
        await stepping(engine, anext(stream))
        await stream.aclose()
        while engine.aborted != ["a"]:
            engine.steps.put([])
            await asyncio.sleep(0.001)

    run(scenario)


def test_a_stream_ends_with_a_refusal_or_the_engines_death():
    async def scenario(engine, thread):
        with pytest.raises(ValueError, match="too long"):
            await anext(thread.stream("a", "too long", None))
        stream = thread.stream("b", "prompt", None)
        await stepping(engine, anext(stream))
        engine.steps.put(RuntimeError("out of memory"))
        with pytest.raises(EngineDied, match="out of memory"):
            while True:
                await anext(stream)

    run(scenario)
