"""`exltune deploy tabby --load`: put a planned quant on a running server, and see that it runs as planned."""

from __future__ import annotations

import re
from typing import Any

from pydantic import SecretStr

from exltune.errors import DeployError
from exltune.pipeline.common.reporter import Reporter, Silent
from exltune.publish.tabby_client import Card, TabbyClient
from exltune.publish.tabby_files import draft_section, model_section
from exltune.schema.deploy import Deployment, Served

#: Enough for a model that thinks first to begin.
_TOKENS = 32
_PROMPT = "Say hello in one short sentence."
#: Keys of the plan that POST /v1/model/load drops without a word: only tabby_config.yml carries them.
_NOT_IN_A_REQUEST = ("max_batch_size", "cpu_moe_offload_layers", "reasoning", "tool_format")
_PAIR = re.compile(r"([2-8])\s*,\s*([2-8])")
_OLD_NAMES = {"Q4": "4,4", "Q6": "6,6", "Q8": "8,8"}
_FP16 = "FP16"


def load_deployment(
    deployment: Deployment,
    url: str,
    key: SecretStr | None,
    *,
    model_name: str | None = None,
    timeout: float = 300.0,
    reporter: Reporter | None = None,
) -> Served:
    """Unload the running model, load this one, compare the server's answer with the plan, ask for a completion.

    key: the admin key; None for a server without keys. model_name: as the server calls the folder. timeout: seconds
    without a byte. The server unloads first because TabbyAPI calls a loaded path loaded, whatever is asked of it.
    Raises: DeployError, UsageError for an address that is none.
    """
    reporter = reporter or Silent()
    name = model_name or deployment.model_name
    with TabbyClient(url, key, timeout=timeout) as client:
        client.check_admin()
        _check_listed(name, client.models(), url)
        client.unload()
        with reporter.stage(f"Loading {name}") as progress:
            client.load(load_request(deployment, name), progress)
        card = client.card()
        _check_card(card, deployment, name, url)
        with reporter.stage("Asking for a completion"):
            answer = client.complete(_PROMPT, _TOKENS)
    return Served(
        url=url,
        model_name=card.id,
        max_seq_len=deployment.settings.max_seq_len,
        cache_size=deployment.settings.cache_size,
        cache_mode=deployment.settings.cache_mode,
        text=answer.text,
        prompt_tokens=None if answer.usage is None else answer.usage.prompt_tokens,
        completion_tokens=None if answer.usage is None else answer.usage.completion_tokens,
    )


def load_request(deployment: Deployment, name: str) -> dict[str, Any]:
    """The body of POST /v1/model/load; n-gram and MTP drafting cannot be asked for there."""
    section = model_section(deployment)
    request = {"model_name": name} | {key: value for key, value in section.items() if key not in _NOT_IN_A_REQUEST}
    draft = draft_section(deployment)
    if "draft_model_name" in draft:
        request["draft_model"] = {"draft_model_name": draft["draft_model_name"]}
    return request


def _check_listed(name: str, listed: tuple[str, ...], url: str) -> None:
    """Before anything is unloaded. A model deeper down ("family/4bpw") is listed by its first folder."""
    if name.split("/", maxsplit=1)[0] not in listed:
        there = ", ".join(sorted(listed)) or "nothing"
        raise DeployError(
            f"the server has no model {name} in its model_dir, which holds {there}",
            where=url,
            fix="Put the folder there, or give its name there as `model_name`; the model is still loaded",
        )


def _check_card(card: Card, deployment: Deployment, name: str, url: str) -> None:
    settings, seen = deployment.settings, card.parameters
    pairs: list[tuple[str, object, object]] = [
        ("model", card.id, name.rstrip("/").rsplit("/", maxsplit=1)[-1]),
        ("max_seq_len", seen.max_seq_len, settings.max_seq_len),
        ("cache_size", seen.cache_size, settings.cache_size),
        ("cache_mode", _kept_mode(seen.cache_mode), _kept_mode(settings.cache_mode)),
        ("chunk_size", seen.chunk_size, settings.chunk_size),
        ("max_batch_size", seen.max_batch_size, settings.max_batch_size),
    ]
    wrong = [f"{what} is {found} instead of {planned}" for what, found, planned in pairs if found != planned]
    if not wrong:
        return
    if _kept_mode(seen.cache_mode) == _FP16 and seen.cache_mode not in (_FP16, None):
        wrong.append(f"TabbyAPI does not know the cache_mode {seen.cache_mode!r} and keeps fp16 without saying so")
    raise DeployError(
        f"the model is loaded, but not as planned: {'; '.join(wrong)}",
        where=url,
        fix="The tabby_config.yml in the model's folder on the server wins over the request: put the one that deploy "
        "wrote there",
    )


def _kept_mode(mode: str | None) -> str:
    """The cache's mode: "k,v", or FP16 for everything that TabbyAPI's pattern does not match."""
    found = _PAIR.fullmatch(_OLD_NAMES.get(mode or "", mode or ""))
    return _FP16 if found is None else f"{found[1]},{found[2]}"
