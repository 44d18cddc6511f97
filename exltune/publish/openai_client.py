"""Answers from a model behind any OpenAI-compatible endpoint: TabbyAPI, vLLM, llama.cpp's server."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal

import httpx2
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from exltune.corpora.prompts import Prompt
from exltune.engines.sampling import Task, TaskKey, seed_of
from exltune.errors import DeployError, UsageError
from exltune.schema.generate import Answer, GenerateOptions

_CONNECT_SECONDS = 10.0
_TRIES = 5
#: Seconds between tries.
_LONGEST_WAIT = 30.0
_SHOWN = 500
#: Passing states: a server that is busy, restarts, or loads a model.
_BUSY = (
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)
_AGAIN = "the same command goes on with the missing answers"


class _Seen(BaseModel):
    """The fields that are read of an answer; other fields are left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _Message(_Seen):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[dict[str, object]] | None = None


class _Choice(_Seen):
    message: _Message = _Message()
    text: str | None = None
    finish_reason: str | None = None


class _Usage(_Seen):
    completion_tokens: int | None = None


class _Completion(_Seen):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage = _Usage()


@dataclass(frozen=True)
class Endpoint:
    """Where a model is served. model: its name there; parallel: requests under way at once; timeout: seconds each."""

    url: str
    model: str = "default"
    key: SecretStr | None = None
    parallel: int = 8
    timeout: float = 600.0


class EndpointSampler:
    """A Sampler that asks a server; a request that the server is too busy for is sent again a few times."""

    def __init__(self, endpoint: Endpoint, options: GenerateOptions) -> None:
        self._endpoint, self._options = endpoint, options
        self._url = _base_url(endpoint.url)
        key = endpoint.key
        self._client = httpx2.Client(
            base_url=self._url,
            headers={} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"},
            timeout=httpx2.Timeout(endpoint.timeout, connect=min(endpoint.timeout, _CONNECT_SECONDS)),
        )

    def sample(self, tasks: Sequence[Task], done: Collection[TaskKey]) -> Iterator[list[tuple[Task, Answer]]]:
        """As Sampler.sample. Raises: DeployError where the server refuses, fails or goes away."""
        with self._client, ThreadPoolExecutor(self._endpoint.parallel) as pool:
            asked: dict[Future[Answer], Task] = {
                pool.submit(self._answer, task): task for task in tasks if task.key not in done
            }
            try:
                for future in as_completed(asked):
                    yield [(asked[future], future.result())]
            finally:
                pool.shutdown(cancel_futures=True)

    def _answer(self, task: Task) -> Answer:
        found = self._post(*self._request(task))
        choice = found.choices[0]
        message = choice.message
        return Answer(
            content=message.content if choice.text is None else choice.text,
            reasoning=message.reasoning_content or message.reasoning or None,
            tool_calls=tuple(message.tool_calls or ()),
            tokens=found.usage.completion_tokens,
            finish=_finish(choice.finish_reason),
        )

    def _request(self, task: Task) -> tuple[str, dict[str, Any]]:
        options = self._options
        body: dict[str, Any] = {
            "model": self._endpoint.model,
            "max_tokens": options.max_new_tokens,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "seed": seed_of(options.seed, *task.key),
            "stream": False,
        }
        path, asked = _asked(task.prompt)
        return path, body | asked

    def _post(self, path: str, body: dict[str, Any]) -> _Completion:
        wait = wait_random_exponential(multiplier=1, max=_LONGEST_WAIT)
        retrying = Retrying(stop=stop_after_attempt(_TRIES), wait=wait, retry=retry_if_exception(_passes), reraise=True)
        with self._errors(path):
            response = retrying(self._send, path, body)
            return _Completion.model_validate_json(response.content)

    def _send(self, path: str, body: dict[str, Any]) -> httpx2.Response:
        response = self._client.post(path, json=body)
        response.raise_for_status()
        return response

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        """Trouble on the wire in words."""
        try:
            yield
        except httpx2.HTTPStatusError as error:
            raise self._refused(path, error.response) from None
        except httpx2.TimeoutException:
            raise self._error(
                f"no answer within {self._endpoint.timeout:g} s", fix=f"Give a longer `timeout`; {_AGAIN}"
            ) from None
        except httpx2.HTTPError as error:
            raise self._error(
                f"no connection, or a lost one ({error or type(error).__name__})", fix=f"Start the server; {_AGAIN}"
            ) from None
        except ValidationError as error:
            field = ".".join(map(str, error.errors()[0]["loc"])) or "the whole answer"
            raise self._error(
                f"{path} answers something unknown at {field}", fix="Give the address of an OpenAI-compatible server"
            ) from None

    def _refused(self, path: str, response: httpx2.Response) -> DeployError:
        status = response.status_code
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            what = "the server wants a key" if self._endpoint.key is None else "the server does not accept the key"
            return self._error(what, fix="Give `key_file` with a key for it")
        text = " ".join(response.text.split()) or response.reason_phrase
        fix = "Check `url` and `served_model`" if status == HTTPStatus.NOT_FOUND else f"See its log; {_AGAIN}"
        return self._error(f"{path} answers {status}: {text}", fix=fix)

    def _error(self, what: str, *, fix: str) -> DeployError:
        # Hidden before it is cut: half a key is a secret too.
        key = self._endpoint.key
        hidden = what if key is None else what.replace(key.get_secret_value(), "***")
        return DeployError(hidden[:_SHOWN], where=self._url, fix=fix)


def _asked(prompt: Prompt) -> tuple[str, dict[str, Any]]:
    """Route and content of a request."""
    if prompt.text is not None:
        return "/v1/completions", {"prompt": prompt.text}
    extras = {"tools": prompt.tools, "chat_template_kwargs": prompt.options}
    return "/v1/chat/completions", {"messages": prompt.messages} | {k: v for k, v in extras.items() if v}


def _finish(reason: str | None) -> Literal["stop", "length"]:
    return "length" if reason == "length" else "stop"


def _passes(error: BaseException) -> bool:
    if isinstance(error, httpx2.HTTPStatusError):
        return error.response.status_code in _BUSY
    return isinstance(error, httpx2.NetworkError | httpx2.RemoteProtocolError)


def _base_url(text: str) -> str:
    """scheme://host:port without a trailing slash or /v1. Raises: UsageError, which quotes no password."""
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL:
        url = httpx2.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        raise UsageError("`url` names no http address", fix="For example `url` http://127.0.0.1:5000")
    if url.userinfo:
        raise UsageError("`url` holds a user or password", fix="Give a key with `key_file`")
    return str(url.copy_with(query=None, fragment=None)).rstrip("/").removesuffix("/v1")
