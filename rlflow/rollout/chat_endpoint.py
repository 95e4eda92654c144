"""An engine of this process behind HTTP, as far as a judge needs it: `POST …/chat/completions` in OpenAI's format."""

import asyncio
import itertools
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from rlflow.errors import EngineDied, RolloutError
from rlflow.rollout.completions import GroupRequest
from rlflow.rollout.engine import RolloutEngine


class ChatEndpoint:
    """Answers requests as long as its process lives; each in a thread of its own, so that the engine decodes them together."""

    def __init__(self, engine: RolloutEngine, tokenizer: Any, host: str) -> None:
        """To be built on the event loop that the engine was started on."""
        self._engine, self._tokenizer = engine, tokenizer
        self._loop, self._numbers = asyncio.get_running_loop(), itertools.count()
        server = ThreadingHTTPServer((host, 0), _handler(self._answer))
        server.daemon_threads = True
        self.url = f"http://{host}:{server.server_port}/v1"
        """Base URL; requests go to its `/chat/completions`."""
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def _answer(self, body: dict[str, Any]) -> str:
        """The text for a request, from the thread of its connection."""
        text = self._tokenizer.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=True)
        prompt_ids = np.asarray(self._tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)
        sampling = {"temperature": body["temperature"], "max_tokens": body["max_tokens"]}
        request = GroupRequest(0, next(self._numbers), prompt_ids, num_completions=1, **sampling)
        group = asyncio.run_coroutine_threadsafe(self._engine.generate(request), self._loop).result()
        return self._tokenizer.decode(group.completions[0].token_ids, skip_special_tokens=True)


def _handler(answer: Any) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                document = {"choices": [{"message": {"role": "assistant", "content": answer(body)}}]}
            except EngineDied as error:  # another one may stand in for it
                self.send_error(503, " ".join(str(error).split())[:300])
                return
            except RolloutError as error:  # such as a prompt that is too long; asking again does not help
                self.send_error(400, " ".join(str(error).split())[:300])
                return
            content = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Requests are no news."""

    return Handler
