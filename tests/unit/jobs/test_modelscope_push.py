"""Pushing with ModelScope's own package, to a stand-in of its HTTP API."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

pytest.importorskip("modelscope", reason="modelscope is not installed (pip install 'rlflow[modelscope]')")

from rlflow.errors import HubError
from rlflow.jobs.push import push

TOKEN = "ms-secret"
WEIGHTS = b"\0" * 2_000_000


class _Handler(BaseHTTPRequestHandler):
    """Accepts a repository and files of the right token, and keeps what it was sent."""

    requests: dict[str, list[Any]]

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self._answer({"Username": "org", "Email": "o@example.org"})

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("/login") and sent["AccessToken"] != TOKEN:
            self._answer({}, code=401, message=f"no such token {sent['AccessToken']}")
            return
        kind = self.path.rpartition("/")[2] if "/commit/" not in self.path else "commit"
        self.requests.setdefault(kind, []).append(sent)
        known = {"objects": [{"oid": o["oid"], "size": o["size"]} for o in sent.get("objects", [])]}  # no url: it is there
        self._answer(known if kind == "batch" else {"AccessToken": "git", "Username": "org", "Email": "o@example.org"})

    def _answer(self, data: Any, code: int = 200, message: str = "ok") -> None:
        body = json.dumps({"Code": code, "Success": code == 200, "Message": message, "Data": data}).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Set-Cookie", "m_session_id=s; Path=/")
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def requests(monkeypatch, tmp_path) -> Iterator[dict[str, list[Any]]]:
    handler = type("Handler", (_Handler,), {"requests": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HOME", str(tmp_path))
    yield handler.requests
    server.shutdown()
    server.server_close()


@pytest.fixture
def model(tmp_path):
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(WEIGHTS)
    return directory


def test_a_private_repository_gets_every_file(requests, model):
    assert push(model, "org/name", hub="modelscope", token=TOKEN, private=True) == "https://modelscope.cn/models/org/name"
    first = requests["models"][0]
    assert (first["Path"], first["Name"], first["Visibility"]) == ("org", "name", 1)
    [blobs] = requests["batch"]
    assert blobs["objects"] == [{"oid": hashlib.sha256(WEIGHTS).hexdigest(), "size": len(WEIGHTS)}]
    [commit] = requests["commit"]
    assert {action["path"] for action in commit["actions"]} == {"config.json", "model.safetensors"}
    assert commit["commit_message"].startswith("Model exported by rlflow")


def test_a_refused_token_is_one_line_without_the_token(requests, model):
    with pytest.raises(HubError, match=r"^--push org/name: ") as caught:
        push(model, "org/name", hub="modelscope", token="wrong-token", private=False)
    assert "wrong-token" not in str(caught.value) and "\n" not in str(caught.value)
    assert "commit" not in requests
