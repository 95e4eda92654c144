"""A stand-in for the Hugging Face hub: the part of its HTTP API that creates a repository and takes files."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub:
    """What it was sent."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.repositories: dict[str, bool] = {}
        """Name -> whether it is private."""
        self.blobs: dict[str, bytes] = {}
        """LFS objects by SHA-256."""
        self.files: dict[str, bytes] = {}
        """Committed files of the last repository."""
        self.commits: list[str] = []
        self.url = ""


@contextmanager
def hub_server(token: str) -> Iterator[Hub]:
    """Serve until the end of the block."""
    hub = Hub(token)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        body = self._body()
        if self.headers.get("authorization") != f"Bearer {self.hub.token}":
            self._answer({"error": f"Invalid credentials: {self.headers.get('authorization')}"}, 401)
        elif self.path == "/api/repos/create":
            wanted = json.loads(body)
            name = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
            name = name if "/" in name else f"me/{name}"
            self.hub.repositories[name] = bool(wanted.get("private")) or wanted.get("visibility") == "private"
            self._answer({"url": f"{self.hub.url}/{name}", "name": name})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            mode = {name["path"]: "lfs" if name["path"].endswith(".safetensors") else "regular" for name in files}
            self._answer({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in mode.items()]})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [self._lfs_object(item) for item in json.loads(body)["objects"]]
            self._answer({"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            self._commit([json.loads(line) for line in body.splitlines()])
            self._answer(
                {
                    "commitUrl": f"{self.hub.url}/{self.path.split('/')[3]}/{self.path.split('/')[4]}/commit/1",
                    "commitOid": "1" * 40,
                    "success": True,
                }
            )
        else:
            self._answer({}, 404)

    def do_PUT(self) -> None:
        body = self._body()
        digest = hashlib.sha256(body).hexdigest()
        assert self.path == f"/upload/{digest}", "the bytes are not those that were announced"
        self.hub.blobs[digest] = body
        self._answer({})

    def _lfs_object(self, item: dict[str, Any]) -> dict[str, Any]:
        upload = {"href": f"{self.hub.url}/upload/{item['oid']}", "header": {}}
        return {"oid": item["oid"], "size": item["size"], "actions": {"upload": upload}}

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.hub.commits.append(value["summary"])
            elif line["key"] == "file":
                self.hub.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.hub.files[value["path"]] = self.hub.blobs[value["oid"]]

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, value: dict[str, Any], status: int = 200) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
