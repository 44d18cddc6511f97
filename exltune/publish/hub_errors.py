"""Answers of the Hub and the way there, in words that name the remedy; a token never stands in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from exltune.errors import HubError, UsageError

_AGAIN = "Run the same push again: files that are there already are not sent again"
_TOKEN = "Make a token with write access at https://huggingface.co/settings/tokens"
_QUOTA_WORDS = ("quota", "storage", "limit reached", "exceed")
_HIDDEN = "***"


@contextmanager
def hub_errors(repo_id: str, token: str) -> Iterator[None]:
    """Turn errors of huggingface_hub into HubError, or UsageError for a name that it refuses."""
    try:
        yield
    except HfHubHTTPError as error:
        raise _refused(error, repo_id, token) from None
    except OfflineModeIsEnabled:
        raise HubError("HF_HUB_OFFLINE is set", where=repo_id, fix="Unset it to push") from None
    except HFValidationError as error:
        raise UsageError(_said(error, token), where=repo_id, fix="Write OWNER/NAME") from None
    except httpx2.TransportError as error:
        what = f"the Hub cannot be reached ({_said(error, token)})"
        raise HubError(what, where=repo_id, fix=f"Check the network and HF_ENDPOINT. {_AGAIN}") from None
    except OSError as error:
        # The Xet client's errors are Python's own kinds without a number; a disk's have one and are told by the CLI.
        if error.errno is not None:
            raise
        raise _failed(error, repo_id, token) from None
    except (RuntimeError, ValueError) as error:
        # The errors of uploads of single files; the Hub's own answer is their cause where it gave one.
        if isinstance(error.__cause__, HfHubHTTPError):
            raise _refused(error.__cause__, repo_id, token) from None
        raise _failed(error.__cause__ or error, repo_id, token) from None


def _refused(error: HfHubHTTPError, repo_id: str, token: str) -> HubError:
    status = error.response.status_code
    said = _server_message(error, token)
    if status == 401:
        return HubError(f"the Hub does not know this token{said}", where=repo_id, fix=_TOKEN)
    if status in (402, 413, 507) or (status == 403 and any(word in said.lower() for word in _QUOTA_WORDS)):
        return HubError(f"the Hub takes no more bytes{said}", where=repo_id, fix=f"Free or buy storage. {_AGAIN}")
    if status == 403:
        return HubError(f"this token may not write there{said}", where=repo_id, fix=_TOKEN)
    if status == 404:
        return HubError(f"there is no such repository or branch, or it is not yours{said}", where=repo_id, fix=_TOKEN)
    if status in (409, 412):
        return HubError(f"the repository changed during the push{said}", where=repo_id, fix=_AGAIN)
    if status == 429 or status >= 500:
        return HubError(f"the Hub answers {status}{said}", where=repo_id, fix=f"Wait a while. {_AGAIN}")
    return HubError(f"the Hub refuses: {status}{said}", where=repo_id)


def _failed(error: BaseException, repo_id: str, token: str) -> HubError:
    said = _said(error, token)
    if any(word in said.lower() for word in _QUOTA_WORDS):
        return HubError(f"the Hub takes no more bytes ({said})", where=repo_id, fix=f"Free or buy storage. {_AGAIN}")
    return HubError(f"the upload failed ({said})", where=repo_id, fix=_AGAIN)


def _server_message(error: HfHubHTTPError, token: str) -> str:
    return f" ({_clean(error.server_message, token)})" if error.server_message else ""


def _said(error: BaseException, token: str) -> str:
    return _clean(str(error) or type(error).__name__, token)


def _clean(text: str, token: str) -> str:
    return " ".join(text.replace(token, _HIDDEN).split())
