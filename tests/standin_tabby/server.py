"""The routes, on a real socket in a thread.

Source: TabbyAPI e632af4, endpoints/core/router.py, endpoints/core/utils/model.py (stream_model_load), common/model.py
(load_model_gen, apply_load_defaults), common/auth.py, endpoints/OAI/router.py; frames as sse-starlette writes them.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from standin_tabby.config_models import LoadRequest

ADMIN_KEY, API_KEY = "admin-4be1f0c2d7", "user-77aa01c9e3"
MODULES = 4
OUT_OF_MEMORY = "Insufficient VRAM in split for model and cache"


@dataclass
class Tabby:
    """The server's state, what it was asked, and the faults that a test gives it.

    fault: how the next load goes wrong: "memory", "late" (an error after "finished"), "cut" (the connection breaks),
    "ends" (the stream ends early), "silent" (nothing comes), "html" (no event stream) or "nonsense".
    """

    model_dir: Path
    disable_auth: bool = False
    fault: str | None = None
    reply: dict[str, Any] | None = None
    echo_headers: bool = False
    default_batch: int = 128
    loaded: dict[str, Any] | None = None
    asked: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    dropped: set[str] = field(default_factory=set)
    admin_headers: set[str | None] = field(default_factory=set)
    url: str = ""

    @property
    def quantized_cache(self) -> bool:
        """Whether the cache is really quantized, whatever GET /v1/model says of it."""
        assert self.loaded is not None
        mode = {"Q4": "4,4", "Q6": "6,6", "Q8": "8,8"}.get(self.loaded["cache_mode"], self.loaded["cache_mode"])
        return re.search(r"^([2-8])\s*,\s*([2-8])$", mode) is not None

    def routes(self) -> list[tuple[str, str]]:
        """Method and path of everything that was asked."""
        return [(method, path) for method, path, _ in self.asked]


@contextmanager
def running(tabby: Tabby) -> Iterator[Tabby]:
    """The server, listening until the block ends."""

    class Handler(_Handler):
        state = tabby

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    tabby.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield tabby
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Tabby

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self._answer("GET", {})

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        content = self.rfile.read(length)
        self._answer("POST", json.loads(content) if content else {})

    def _answer(self, method: str, body: dict[str, Any]) -> None:
        self.state.asked.append((method, self.path, body))
        routes = {
            ("GET", "/v1/auth/permission"): (self._api, lambda: self._send(200, {"permission": self._permission()})),
            ("GET", "/v1/models"): (self._api, self._models),
            ("GET", "/v1/model"): (self._api, self._card),
            ("POST", "/v1/model/unload"): (self._admin, self._unload),
            ("POST", "/v1/model/load"): (self._admin, lambda: self._load(body)),
            ("POST", "/v1/chat/completions"): (self._api, lambda: self._chat(body)),
        }
        if (method, self.path) not in routes:
            self._send(404, {"detail": "Not Found"})
            return
        allowed, action = routes[(method, self.path)]
        if allowed():
            action()

    def _send(self, status: int, content: Any) -> None:
        if self.state.echo_headers and status >= 400:
            content = {"detail": f"{content['detail']} {dict(self.headers)}"}
        data = b"null" if content is None else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _bearer(self) -> str | None:
        scheme, _, key = (self.headers.get("Authorization") or "").partition(" ")
        return key if scheme.lower() == "bearer" else None

    def _api(self) -> bool:
        """check_api_key: looks at X-api-key and the bearer, never at X-admin-key."""
        key = self.headers.get("X-api-key") or self._bearer()
        if self.state.disable_auth or key in (API_KEY, ADMIN_KEY):
            return True
        self._send(401, {"detail": "Please provide an API key" if key is None else "Invalid API key"})
        return False

    def _admin(self) -> bool:
        self.state.admin_headers.add(self.headers.get("X-admin-key"))
        key = self.headers.get("X-admin-key") or self._bearer()
        if self.state.disable_auth or key == ADMIN_KEY:
            return True
        self._send(401, {"detail": "Please provide an admin key" if key is None else "Invalid admin key"})
        return False

    def _permission(self) -> str:
        key = self.headers.get("X-admin-key") or self.headers.get("X-api-key") or self._bearer()
        return "admin" if self.state.disable_auth or key == ADMIN_KEY else "api"

    def _models(self) -> None:
        listed = [path.name for path in self.state.model_dir.iterdir() if path.is_dir()]
        if self._permission() != "admin":
            listed = [] if self.state.loaded is None else [self.state.loaded["path"].name]
        self._send(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in listed]})

    def _card(self) -> None:
        loaded = self.state.loaded
        if loaded is None:
            self._send(503, {"detail": "No models are currently loaded."})
            return
        names = ("max_seq_len", "cache_size", "cache_mode", "chunk_size", "max_batch_size")
        parameters = {"rope_scale": 1.0, "use_vision": False, "draft": None} | {name: loaded[name] for name in names}
        self._send(200, {"id": loaded["path"].name, "object": "model", "parameters": parameters})

    def _unload(self) -> None:
        if self.state.loaded is None:
            self._send(503, {"detail": "No models are currently loaded."})
            return
        self.state.loaded = None
        self._send(200, None)

    def _chat(self, body: dict[str, Any]) -> None:
        if self.state.loaded is None:
            self._send(503, {"detail": "No models are currently loaded."})
            return
        reply = self.state.reply or {"role": "assistant", "content": "Hello there."}
        if "status" in reply:
            self._send(reply["status"], {"detail": reply["detail"]})
            return
        usage = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
        self._send(200, {"object": "chat.completion", "choices": [{"index": 0, "message": reply}], "usage": usage})

    def _load(self, body: dict[str, Any]) -> None:
        try:
            request = LoadRequest.model_validate(body)
        except ValidationError as error:
            self._send(422, {"detail": json.loads(error.json(include_url=False))})
            return
        self.state.dropped |= body.keys() - LoadRequest.model_fields.keys()
        path = self.state.model_dir / request.model_name
        if not path.exists():
            missing = "Could not find the model path for load. Check model name or config.yml?"
            self._send(400, {"detail": missing})
            return
        if self.state.fault == "html":
            self._send(200, {"hello": "proxy"})
            return
        self._stream(path, request)

    def _stream(self, path: Path, request: LoadRequest) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._chunk(": ping - 2026-11-21 12:00:00.000000+00:00\r\n\r\n")
        fault = self.state.fault
        if fault == "silent":
            time.sleep(3)
        if fault in ("cut", "silent"):
            self._frame(1, "processing")
            self.close_connection = True
            self.connection.close()
            return
        for frame in _frames(self.state, path, request):
            self._chunk(f"data: {json.dumps(frame) if isinstance(frame, dict) else frame}\r\n\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def _frame(self, module: int, status: str) -> None:
        frame = {"model_type": "model", "module": module, "modules": MODULES, "status": status}
        self._chunk(f"data: {json.dumps(frame)}\r\n\r\n")

    def _chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()


def _frames(state: Tabby, path: Path, request: LoadRequest) -> Iterator[dict[str, Any] | str]:
    """What stream_model_load yields."""
    if state.loaded is not None and state.loaded["path"] == path.resolve():
        yield from _progress("model", 1, 1)  # Loaded already: nothing is done.
        return
    state.loaded = None
    asked = request.model_dump(exclude_none=True)
    overrides = _overrides(path)
    settings = {"cache_mode": "FP16", "chunk_size": 2048, "max_batch_size": state.default_batch} | asked | overrides
    settings["max_seq_len"] = settings.get("max_seq_len") or 4096
    settings["cache_size"] = settings.get("cache_size") or settings["max_seq_len"]
    if settings["cache_size"] % 256:
        yield _error("max_num_tokens must be a multiple of 256.")
        return
    if state.fault == "nonsense":
        yield "<busy>"
        return
    for kind in ("draft", "model") if "draft_model" in settings else ("model",):
        for number in range(1, MODULES + 1):
            if state.fault == "memory" and kind == "model" and number == 3:
                yield _error(OUT_OF_MEMORY)
                return
            if state.fault == "ends" and number == 3:
                return
            yield from _progress(kind, number, MODULES)
    if state.fault == "late":
        yield _error(f"generator failed for key {ADMIN_KEY}")
        return
    state.loaded = {"path": path.resolve()} | settings


def _overrides(path: Path) -> dict[str, Any]:
    file = path / "tabby_config.yml"
    return (yaml.safe_load(file.read_text()).get("model") or {}) if file.is_file() else {}


def _progress(kind: str, number: int, modules: int) -> Iterator[dict[str, Any]]:
    frame = {"model_type": kind, "module": number, "modules": modules}
    yield frame | {"status": "processing"}
    if number == modules:
        yield frame | {"status": "finished"}


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "generate": None}}
