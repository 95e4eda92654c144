"""A vLLM engine in a thread of this process: it steps while there are requests, and does other things between two steps."""

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from rlflow.errors import EngineDied

_ARRIVAL_S = 0.005
"""An idle engine begins when no request has come for this long: those sent together are then prefilled together."""


@dataclass(frozen=True, slots=True)
class _Command:
    run: Callable[[Any], Any]
    done: Future[Any]


class EngineThread:
    """Owns the engine; nothing else touches it.

    An exception inside a step leaves the engine in an unknown state: it is dead, and everything asked of it, then and later,
    fails with `EngineDied`.
    """

    def __init__(self, create: Callable[[], Any]) -> None:
        """`create` builds the engine, in its thread; `started` waits for it."""
        self._commands: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
        self._outputs: dict[str, Future[Any]] = {}
        self._streams: dict[str, Callable[[Any], None]] = {}
        self._created: Future[None] = Future()
        self._death: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(create,), name="vllm-engine", daemon=True)
        self._thread.start()

    async def started(self) -> None:
        """Wait until the engine can be used. Raises what its construction raised."""
        await asyncio.wrap_future(self._created)

    async def call(self, function: Callable[[Any], Any]) -> Any:
        """`function(engine)`, run between two steps."""
        done: Future[Any] = Future()
        self._commands.put(_Command(function, done))
        return await asyncio.wrap_future(done)

    async def generate(self, request_id: str, prompt: Any, sampling: Any) -> Any:
        """The request's final output. If the caller is cancelled, the request is aborted."""
        output: Future[Any] = Future()

        def add(engine: Any) -> None:
            engine.add_request(request_id, prompt, sampling)
            self._outputs[request_id] = output

        added: Future[Any] = Future()
        added.add_done_callback(lambda done: _fail(output, done))
        try:
            self._commands.put(_Command(add, added))
            return await asyncio.wrap_future(output)
        except asyncio.CancelledError:
            self._commands.put(_Command(lambda engine: engine.abort_request([request_id]), Future()))
            raise

    async def stream(self, request_id: str, prompt: Any, sampling: Any) -> AsyncGenerator[Any, None]:
        """The request's outputs, step by step. If the iterator is closed before the end, the request is aborted."""
        loop, outputs = asyncio.get_running_loop(), asyncio.Queue[Any]()
        finished = False

        def deliver(output: Any) -> None:
            loop.call_soon_threadsafe(outputs.put_nowait, output)

        def add(engine: Any) -> None:
            engine.add_request(request_id, prompt, sampling)
            self._streams[request_id] = deliver

        try:
            await self.call(add)
            while not finished:
                output = await outputs.get()
                if isinstance(output, EngineDied):
                    raise output
                finished = output.finished
                yield output
        finally:
            if not finished:
                self._commands.put(_Command(lambda engine: self._abort_stream(engine, request_id), Future()))

    def _abort_stream(self, engine: Any, request_id: str) -> None:
        if self._streams.pop(request_id, None):
            engine.abort_request([request_id])

    async def close(self, timeout_s: float) -> None:
        """Stop the engine after the present step, and wait for its end (a thread that frees CUDA memory while the interpreter
        ends takes the process down).
        """
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join, timeout_s)

    def _run(self, create: Callable[[], Any]) -> None:
        try:
            engine = create()
        except BaseException as error:
            self._created.set_exception(error)
            return
        self._created.set_result(None)
        while self._do_commands(engine):
            self._step(engine)
        engine.engine_core.shutdown()

    def _do_commands(self, engine: Any) -> bool:
        """Everything asked for by now; waits if there is nothing else to do. False: the engine is to stop."""
        patience_s = 0.0 if self._is_busy(engine) else _ARRIVAL_S
        while True:
            try:
                command = self._commands.get(timeout=patience_s if self._is_busy(engine) else None)
            except queue.Empty:
                return True
            if command is None:
                return False
            self._do(command, engine)

    def _is_busy(self, engine: Any) -> bool:
        return self._death is None and engine.has_unfinished_requests()

    def _do(self, command: _Command, engine: Any) -> None:
        if not command.done.set_running_or_notify_cancel():
            return
        if self._death is not None:
            command.done.set_exception(self._obituary())
            return
        try:
            command.done.set_result(command.run(engine))
        except BaseException as error:
            command.done.set_exception(error)

    def _step(self, engine: Any) -> None:
        try:
            for output in engine.step():
                if stream := self._streams.get(output.request_id):
                    if output.finished:
                        del self._streams[output.request_id]
                    stream(output)
                elif output.finished and (waiting := self._outputs.pop(output.request_id, None)):
                    _deliver(waiting, output)
        except BaseException as error:
            self._death = error
            for waiting in self._outputs.values():
                if waiting.set_running_or_notify_cancel():
                    waiting.set_exception(self._obituary())
            self._outputs.clear()
            for stream in self._streams.values():
                stream(self._obituary())
            self._streams.clear()

    def _obituary(self) -> EngineDied:
        return EngineDied(f"the engine died: {type(self._death).__name__}: {self._death}")


def _fail(output: Future[Any], added: Future[Any]) -> None:
    """A request that the engine did not take has no output. One wait for both saves a change of threads a request."""
    error = added.exception()
    if error is not None and output.set_running_or_notify_cancel():
        output.set_exception(error)


def _deliver(waiting: Future[Any], output: Any) -> None:
    if waiting.set_running_or_notify_cancel():
        waiting.set_result(output)
