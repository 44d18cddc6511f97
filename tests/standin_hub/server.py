"""The HTTP side: the routes that huggingface_hub 2.4 calls, and failures on demand."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import yaml

from .state import Repo, git_oid, upload_mode

#: Parts of a multipart upload; the Hub's are 64 MiB.
PART_BYTES = 64 * 1024
_ID = r"(?P<repo>[^/]+/[^/]+)"


@dataclass
class Failure:
    """An answer to the next `times` requests of a route, whatever they ask."""

    method: str
    path: str
    status: int
    message: str
    times: int
    headers: dict[str, str] = field(default_factory=dict)


class HubError(Exception):
    """An error answer, in the Hub's form."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class StandinHub:
    """The Hub of a test. tokens: name and role ("write" or "read") by token. requests: method and path of every call.

    received: bytes of large files that were sent. echo_token: put the token into error messages, as no server should.
    """

    def __init__(self) -> None:
        self.tokens = {"hf_writer": ("me", "write"), "hf_reader": ("me", "read")}
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.received = 0
        self.quota: int | None = None
        self.echo_token = False
        self.url = ""
        self._failures: list[Failure] = []
        self.lock = threading.Lock()

    def fail(self, method: str, path: str, status: int, message: str = "", times: int = 1, **headers: str) -> None:
        """Answer the next requests whose path matches this pattern with an error."""
        self._failures.append(Failure(method, path, status, message, times, headers))

    def failure(self, method: str, path: str) -> Failure | None:
        for one in self._failures:
            if one.times > 0 and one.method == method and re.search(one.path, path):
                one.times -= 1
                return one
        return None

    def text(self, repo: str, branch: str, path: str) -> bytes:
        """Content of a file as it stands."""
        content = self.repos[repo].branches[branch].files[path][1]
        return self.large[content] if isinstance(content, str) else content

    def names(self, repo: str, branch: str) -> set[str]:
        """Files of a branch."""
        return set(self.repos[repo].branches[branch].files)

    def calls(self, pattern: str) -> int:
        """How many requests matched `METHOD /path`."""
        return sum(bool(re.search(pattern, f"{method} {path}")) for method, path in self.requests)


@contextmanager
def running(hub: StandinHub) -> Iterator[StandinHub]:
    """Serve a Hub on a port of this machine."""

    class Handler(_Handler):
        pass

    Handler.hub = hub
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: StandinHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""

    def do_GET(self) -> None:
        self._handle("GET")

    def do_POST(self) -> None:
        self._handle("POST")

    def do_PUT(self) -> None:
        self._handle("PUT")

    def do_HEAD(self) -> None:
        self._handle("HEAD")

    def _handle(self, method: str) -> None:
        body = self._body()
        path = self.path.partition("?")[0]
        with self.hub.lock:
            self.hub.requests.append((method, unquote(path)))
            failure = self.hub.failure(method, unquote(path))
            if failure is not None:
                self._answer(failure.status, {"error": failure.message}, failure.headers)
                return
            try:
                status, content, headers = self._route(method, path, body)
            except HubError as error:
                message = error.message + (f" Token: {self._token()}" if self.hub.echo_token else "")
                self._answer(error.status, {"error": message}, {"X-Error-Code": error.code} if error.code else {})
                return
        self._answer(status, content, headers)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline().strip(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, status: int, content: Any, headers: dict[str, str]) -> None:
        body = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _who(self) -> tuple[str, str]:
        if self._token() not in self.hub.tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.hub.tokens[self._token()]

    def _route(self, method: str, path: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        for wanted, pattern, answer in _ROUTES:
            found = re.fullmatch(pattern, path)
            if wanted == method and found is not None:
                parts = {name: unquote(value) for name, value in found.groupdict().items()}
                result = answer(self, body, **parts)
                return result if isinstance(result, tuple) else (200, result, {})
        raise HubError(404, f"no route {method} {path}")

    # Storage behind signed URLs asks for no token; everything else does.

    def _whoami(self, body: bytes) -> Any:
        name, role = self._who()
        return {"type": "user", "name": name, "auth": {"accessToken": {"role": role}}}

    def _create(self, body: bytes) -> Any:
        name, role = self._who()
        asked = json.loads(body)
        owner = asked.get("organization") or name
        repo_id = f"{owner}/{asked['name']}"
        if role != "write" or owner != name:
            raise HubError(403, "You don't have the rights to create a model under this namespace")
        if repo_id in self.hub.repos:
            # huggingface_hub reads the address out of this refusal.
            known = {"error": "You already created this model repo", "url": f"{self.hub.url}/{repo_id}"}
            return 409, known, {}
        self.hub.repos[repo_id] = Repo(private=asked.get("visibility") == "private" or bool(asked.get("private")))
        return {"url": f"{self.hub.url}/{repo_id}", "name": repo_id}

    def _repo(self, repo: str, *, write: bool) -> Repo:
        name, role = self._who()
        if repo not in self.hub.repos:
            raise HubError(404, "Repository not found", "RepoNotFound")
        if write and (role != "write" or not repo.startswith(f"{name}/")):
            raise HubError(403, "Forbidden: this token has no write rights")
        return self.hub.repos[repo]

    def _info(self, body: bytes, repo: str, revision: str = "main") -> Any:
        found = self._repo(repo, write=False)
        if revision not in found.branches:
            raise HubError(404, "Invalid rev id", "RevisionNotFound")
        branch = found.branches[revision]
        siblings = [{"rfilename": name} for name in branch.files]
        return {"_id": "1", "id": repo, "modelId": repo, "sha": branch.head, "siblings": siblings, "tags": []}

    def _refs(self, body: bytes, repo: str) -> Any:
        branches = self._repo(repo, write=False).branches
        named = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": branch.head}
            for name, branch in branches.items()
        ]
        return {"branches": named, "converts": [], "tags": []}

    def _branch(self, body: bytes, repo: str, branch: str) -> Any:
        found = self._repo(repo, write=True)
        if branch in found.branches:
            raise HubError(409, "Reference already exists")
        found.branch_off(branch)
        return {}

    def _validate(self, body: bytes) -> Any:
        front = re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], re.DOTALL)
        if front is None or not isinstance(yaml.safe_load(front[1]), dict):
            raise HubError(400, "no metadata")
        return {"errors": [], "warnings": []}

    def _preupload(self, body: bytes, repo: str, revision: str) -> Any:
        found = self._repo(repo, write=True)
        if revision not in found.branches:
            raise HubError(404, "Invalid rev id", "RevisionNotFound")
        known = found.branches[revision].files
        files = []
        for file in json.loads(body)["files"]:
            answer = {
                "path": file["path"],
                "uploadMode": upload_mode(file["path"], file["size"]),
                "shouldIgnore": False,
            }
            files.append(answer | ({"oid": known[file["path"]][0]} if file["path"] in known else {}))
        return {"files": files}

    def _batch(self, body: bytes, repo: str) -> Any:
        self._repo(repo, write=True)
        objects = []
        for one in json.loads(body)["objects"]:
            oid, size = one["oid"], one["size"]
            answer = {"oid": oid, "size": size}
            if self.hub.quota is not None and size > self.hub.quota:
                answer["error"] = {"code": 413, "message": "Private repository storage limit reached"}
            elif oid not in self.hub.large:
                answer["actions"] = self._upload_actions(oid, size)
            objects.append(answer)
        return {"transfer": "basic", "objects": objects}

    def _upload_actions(self, oid: str, size: int) -> dict[str, Any]:
        verify = {"href": f"{self.hub.url}/lfs-verify"}
        if size <= PART_BYTES:
            return {"upload": {"href": f"{self.hub.url}/lfs/{oid}"}, "verify": verify}
        parts = {str(n): f"{self.hub.url}/lfs/{oid}/{n}" for n in range(1, -(-size // PART_BYTES) + 1)}
        header = {"chunk_size": str(PART_BYTES), **parts}
        return {"upload": {"href": f"{self.hub.url}/lfs-complete/{oid}", "header": header}, "verify": verify}

    def _store(self, body: bytes, oid: str) -> Any:
        if hashlib.sha256(body).hexdigest() != oid:
            raise HubError(400, "checksum mismatch")
        self.hub.received += len(body)
        self.hub.large[oid] = body
        return None

    def _store_part(self, body: bytes, oid: str, part: str) -> Any:
        self.hub.received += len(body)
        self.hub.parts[oid, int(part)] = body
        return 200, None, {"ETag": f'"{part}"'}

    def _complete(self, body: bytes, oid: str) -> Any:
        numbers = [part["partNumber"] for part in json.loads(body)["parts"]]
        content = b"".join(self.hub.parts[oid, number] for number in numbers)
        if hashlib.sha256(content).hexdigest() != oid:
            raise HubError(400, "checksum mismatch")
        self.hub.large[oid] = content
        return {}

    def _verify(self, body: bytes) -> Any:
        asked = json.loads(body)
        if len(self.hub.large.get(asked["oid"], b"")) != asked["size"]:
            raise HubError(404, "not uploaded")
        return {}

    def _commit(self, body: bytes, repo: str, revision: str) -> Any:
        found = self._repo(repo, write=True)
        if revision not in found.branches:
            raise HubError(404, "Invalid rev id", "RevisionNotFound")
        branch, message = found.branches[revision], ""
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file":
                content = base64.b64decode(value["content"])
                branch.files[value["path"]] = (git_oid(content), content)
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.hub.large:
                    raise HubError(400, f"LFS object {value['oid']} is not there")
                branch.files[value["path"]] = (value["oid"], value["oid"])
            else:
                raise HubError(400, f"unknown operation {entry['key']}")
        oid = branch.commit(message)
        return {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{repo}/commit/{oid}"}


_ROUTES = (
    ("GET", r"/api/whoami-v2", _Handler._whoami),
    ("POST", r"/api/repos/create", _Handler._create),
    ("POST", r"/api/validate-yaml", _Handler._validate),
    ("GET", rf"/api/models/{_ID}/refs", _Handler._refs),
    ("GET", rf"/api/models/{_ID}/revision/(?P<revision>[^/]+)", _Handler._info),
    ("GET", rf"/api/models/{_ID}", _Handler._info),
    ("POST", rf"/api/models/{_ID}/branch/(?P<branch>[^/]+)", _Handler._branch),
    ("POST", rf"/api/models/{_ID}/preupload/(?P<revision>[^/]+)", _Handler._preupload),
    ("POST", rf"/api/models/{_ID}/commit/(?P<revision>[^/]+)", _Handler._commit),
    ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", _Handler._batch),
    ("PUT", r"/lfs/(?P<oid>\w+)", _Handler._store),
    ("PUT", r"/lfs/(?P<oid>\w+)/(?P<part>\d+)", _Handler._store_part),
    ("POST", r"/lfs-complete/(?P<oid>\w+)", _Handler._complete),
    ("POST", r"/lfs-verify", _Handler._verify),
)
