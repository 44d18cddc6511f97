"""TabbyAPI over HTTP: the answers of its admin API, and errors instead of its silences.

Source: TabbyAPI e632af4, endpoints/core/router.py, endpoints/core/utils/model.py, endpoints/OAI/router.py,
common/auth.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

import httpx2
from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from exltune.errors import DeployError, UsageError

#: Called with modules loaded, modules in all, and the kind ("model", "draft" or "vision").
OnProgress = Callable[[int, int, str], None]

_CONNECT_SECONDS = 10.0
_CONNECT_TRIES = 3
_SHOWN = 500
_MEMORY = ("out of memory", "outofmemory", "insufficient vram", "cuda error: out")


class _Seen(BaseModel):
    """The fields that are read of an answer; fields that a newer TabbyAPI adds are left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class CardParameters(_Seen):
    """Of the loaded model, as the server runs it; cache_mode as it was asked for, be it nonsense."""

    max_seq_len: int | None = None
    cache_size: int | None = None
    cache_mode: str | None = None
    max_batch_size: int | None = None
    chunk_size: int | None = None


class Card(_Seen):
    """GET /v1/model."""

    id: str
    parameters: CardParameters


class _Named(_Seen):
    id: str


class _Models(_Seen):
    data: list[_Named]


class _Permission(_Seen):
    permission: str


class _Frame(_Seen):
    model_type: str
    module: int
    modules: int
    status: str


class _Message(_Seen):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(_Seen):
    message: _Message


class _Usage(_Seen):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Completion(_Seen):
    """POST /v1/chat/completions."""

    choices: list[_Choice]
    usage: _Usage | None = None

    @property
    def text(self) -> str:
        """The model's answer, or its thinking where there is no answer."""
        message = self.choices[0].message if self.choices else _Message()
        return message.content or message.reasoning_content or ""


_Read = TypeVar("_Read", bound=_Seen)


class TabbyClient:
    """One server and one key, which is sent in headers and taken out of every message.

    timeout: seconds without a byte from the server. A load may take longer: TabbyAPI pings every 15 s meanwhile.
    """

    def __init__(self, url: str, key: SecretStr | None, *, timeout: float) -> None:
        self._url = _checked_url(url)
        self._key = None if key is None else key.get_secret_value()
        # X-admin-key alone opens the admin routes only; the others look at the bearer.
        headers = {} if self._key is None else {"X-admin-key": self._key, "Authorization": f"Bearer {self._key}"}
        self._timeout = timeout
        self._client = httpx2.Client(
            base_url=self._url,
            headers=headers,
            timeout=httpx2.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS)),
            transport=httpx2.HTTPTransport(retries=_CONNECT_TRIES),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def check_admin(self) -> None:
        """Raises: DeployError where the key is missing, wrong or not the admin key."""
        found = self._read(_Permission, self._request("GET", "/v1/auth/permission"))
        if found.permission != "admin":
            raise self._error(
                "the key is an API key, and loading needs the admin key",
                fix="Give `api_tokens` with the server's api_tokens.yml, or `admin_key_file`",
            )

    def models(self) -> tuple[str, ...]:
        """Names of the folders in the server's model_dir."""
        return tuple(model.id for model in self._read(_Models, self._request("GET", "/v1/models")).data)

    def unload(self) -> None:
        """Unload the model, if one is loaded: 503 says that nothing was."""
        self._request("POST", "/v1/model/unload", accept=(HTTPStatus.SERVICE_UNAVAILABLE,))

    def load(self, request: dict[str, Any], progress: OnProgress) -> None:
        """Load a model and follow it to the end of the stream: an error may come even after "finished".

        Raises: DeployError where the server refuses, reports an error in its 200 stream, or goes away before the end.
        """
        finished = False
        name = str(request["model_name"])
        with (
            self._errors(f"while loading {name}; a load that has begun goes on at the server"),
            self._client.sse("/v1/model/load", method="POST", json=request) as stream,
        ):
            if stream.response.is_error:
                stream.response.read()
                self._refuse(stream.response)
            for event in stream:
                frame = self._frame(event.data, name)
                progress(frame.module, frame.modules, frame.model_type)
                finished = frame.status == "finished" and frame.model_type == "model"
        if not finished:
            raise self._error(f"the stream ended before {name} was loaded", fix="See the server's log, then load again")

    def card(self) -> Card:
        """The loaded model."""
        return self._read(Card, self._request("GET", "/v1/model"))

    def complete(self, prompt: str, max_tokens: int) -> Completion:
        """One greedy chat completion of the loaded model. Raises: DeployError, also where no text comes."""
        asked = {
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": False,
        }
        found = self._read(Completion, self._request("POST", "/v1/chat/completions", json=asked))
        if not found.text.strip():
            raise self._error("the model is loaded and its completion is empty", fix="See the server's log")
        return found

    def _request(self, method: str, path: str, *, accept: tuple[int, ...] = (), **options: Any) -> httpx2.Response:
        with self._errors(f"in {method} {path}"):
            response = self._client.request(method, path, **options)
        if not response.is_success and response.status_code not in accept:
            self._refuse(response)
        return response

    def _frame(self, data: str, name: str) -> _Frame:
        """A frame of the load's stream. Raises: DeployError for one that is an error."""
        try:
            content = json.loads(data)
        except ValueError:
            content = None
        if isinstance(content, dict) and content.get("error") is not None:
            raise self._load_failed(_message_of(content), name)
        try:
            return _Frame.model_validate(content)
        except ValidationError:
            raise self._error(f"the load answers something unknown: {data}", fix=_NOT_TABBY) from None

    def _load_failed(self, message: str, name: str) -> DeployError:
        if any(word in message.lower() for word in _MEMORY):
            return self._error(
                f"not enough memory to load {name}: {message}",
                fix="Free the cards or restart the server and load again; else plan with less `context` or `cache`, "
                "or give exltune plan the cards' readings (`calibrate`)",
            )
        return self._error(f"loading {name} failed: {message}", fix="See the server's log")

    def _read(self, kind: type[_Read], response: httpx2.Response) -> _Read:
        try:
            return kind.model_validate_json(response.content)
        except ValidationError as error:
            field = ".".join(map(str, error.errors()[0]["loc"])) or "the whole answer"
            raise self._error(
                f"{response.request.url.path} answers something unknown at {field}", fix=_NOT_TABBY
            ) from None

    def _refuse(self, response: httpx2.Response) -> NoReturn:
        """Raises: DeployError in the words of the status and of the server."""
        status, message = response.status_code, _answer_of(response)
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            what = "the server wants a key" if self._key is None else "the server does not accept the key"
            raise self._error(what, fix="Give `api_tokens` with the server's api_tokens.yml, or `admin_key_file`")
        raise self._error(
            f"{response.request.method} {response.request.url.path} answers {status}: {message}",
            fix=_FIXES.get(status, "See the server's log"),
        )

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        """Trouble on the wire in words."""
        try:
            yield
        except httpx2.ConnectTimeout:
            raise self._error(f"no connection within {_CONNECT_SECONDS:g} s, {doing}", fix=_START) from None
        except httpx2.TimeoutException:
            raise self._error(
                f"nothing came for {self._timeout:g} s, {doing}", fix="Look at the server, or give a longer `timeout`"
            ) from None
        except httpx2.ConnectError as error:
            raise self._error(f"no connection ({error}), {doing}", fix=_START) from None
        except httpx2.SSEError as error:
            raise self._error(f"{error} {doing}", fix=_NOT_TABBY) from None
        except httpx2.HTTPError as error:
            raise self._error(
                f"the server went away ({error or type(error).__name__}), {doing}", fix="See its log, and load again"
            ) from None

    def _error(self, what: str, *, fix: str) -> DeployError:
        # Hidden before it is cut: half a key is a secret too.
        hidden = what if self._key is None else what.replace(self._key, "***")
        return DeployError(hidden[:_SHOWN], where=self._url, fix=fix)


_NOT_TABBY = "Give the address of a TabbyAPI server, such as http://127.0.0.1:5000"
_START = "Start the server, and give its address as http://HOST:PORT"
_FIXES: Mapping[int, str] = {
    HTTPStatus.NOT_FOUND: _NOT_TABBY,
    HTTPStatus.UNPROCESSABLE_ENTITY: "A model without a chat template cannot chat: check its tokenizer files",
    HTTPStatus.SERVICE_UNAVAILABLE: "Load the model again",
}


def _checked_url(text: str) -> str:
    """scheme://host:port without a trailing slash or /v1. Raises: UsageError, which quotes no password."""
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL:
        url = httpx2.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        raise UsageError("`load` names no http address", fix="For example `load` http://127.0.0.1:5000")
    if url.userinfo:
        raise UsageError("`load` holds a user or password, which TabbyAPI does not know", fix="Give `api_tokens`")
    return str(url.copy_with(query=None, fragment=None)).rstrip("/").removesuffix("/v1")


def _answer_of(response: httpx2.Response) -> str:
    """The text of an error answer: FastAPI's detail, TabbyAPI's error, or its text."""
    try:
        content = response.json()
    except ValueError:
        return " ".join(response.text.split()) or response.reason_phrase
    return _message_of(content) if isinstance(content, dict) else str(content)


def _message_of(content: dict[str, Any]) -> str:
    found = content.get("error", content.get("detail", content))
    if isinstance(found, dict):
        found = found.get("message", found)
    return " ".join(str(found).split())
