"""A local HTTP server that answers as OpenAI-compatible servers do, on a real socket in a thread."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Standin:
    """What it was asked, and how it shall misbehave.

    fail: statuses of the next answers, before any good one. last: requests after which it answers 500 to all.
    """

    key: str | None = None
    fail: list[int] = field(default_factory=list)
    last: int | None = None
    answer: dict[str, Any] = field(default_factory=dict)
    body: bytes | None = None
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, path: str, request: dict[str, Any], authorization: str | None) -> tuple[int, bytes]:
        with self.lock:
            if self.key is not None and authorization != f"Bearer {self.key}":
                return 401, json.dumps({"detail": f"Invalid API key {authorization}"}).encode()
            if self.fail:
                return self.fail.pop(0), b'{"error": {"message": "not now"}}'
            if self.last is not None and len(self.asked) >= self.last:
                return 500, b"out of memory"
            self.asked.append((path, request))
            if self.body is not None:
                return 200, self.body
            return 200, json.dumps(self._good(path, request)).encode()

    def _good(self, path: str, request: dict[str, Any]) -> dict[str, Any]:
        asked = request["prompt"] if path == "/v1/completions" else request["messages"][-1]["content"]
        text = f" answer to {asked} with seed {request['seed']}"
        message = {"role": "assistant", "content": text} | self.answer
        choice = {"text": text} if path == "/v1/completions" else {"message": message}
        return {"choices": [choice | {"finish_reason": "stop"}], "usage": {"completion_tokens": 7}, "model": "any"}


@contextmanager
def serving(standin: Standin) -> Iterator[Standin]:
    """The server while the block lasts."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path not in ("/v1/completions", "/v1/chat/completions"):
                status, body = 404, b'{"detail": "Not Found"}'
            else:
                status, body = standin.reply(self.path, json.loads(content), self.headers.get("Authorization"))
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    standin.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield standin
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
