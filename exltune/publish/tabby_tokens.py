"""The secrets of a TabbyAPI server: made here, kept in one file, shown nowhere."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import AfterValidator, SecretStr, ValidationError

from exltune.errors import DataError
from exltune.schema.base import Record

TOKENS = "api_tokens.yml"
#: As many bytes as TabbyAPI's own keys have (common/auth.py).
_KEY_BYTES = 16
_OWNER_ONLY = 0o600


def _one_word(key: SecretStr) -> SecretStr:
    """Text that a header can carry; anything else would come back quoted in an HTTP library's error."""
    if not re.fullmatch(r"[!-~]+", key.get_secret_value()):
        raise ValueError("a key is one word of ASCII")
    return key


Key = Annotated[SecretStr, AfterValidator(_one_word)]


class Tokens(Record):
    """api_tokens.yml: one API key or several, and the admin key, which is good for everything."""

    api_key: Key | tuple[Key, ...]
    admin_key: Key


def write_new_tokens(directory: Path) -> None:
    """Write fresh keys into a directory that has none yet; nobody else can read the file at any moment."""
    _write(directory / TOKENS, {"api_key": secrets.token_hex(_KEY_BYTES), "admin_key": secrets.token_hex(_KEY_BYTES)})


def copy_tokens(source: Path, directory: Path) -> None:
    """Take over the keys of another deployment. Raises: DataError where they cannot be read."""
    read_tokens(source / TOKENS)
    _write(directory / TOKENS, yaml.safe_load((source / TOKENS).read_text(encoding="utf-8")))


def read_tokens(path: Path) -> Tokens:
    """The keys of an api_tokens.yml. Raises: DataError, which never quotes the file's content."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"it cannot be read ({error.strerror})", where=str(path), fix="Check the path") from None
    except (UnicodeDecodeError, yaml.YAMLError):
        raise _no_tokens(path, "it is not YAML") from None
    try:
        return Tokens.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise _no_tokens(path, f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}") from None


def read_key_file(path: Path) -> SecretStr:
    """The admin key that stands alone in a text file. Raises: DataError."""
    try:
        return _one_word(SecretStr(path.read_text(encoding="utf-8").strip()))
    except OSError as error:
        raise DataError(f"it cannot be read ({error.strerror})", where=str(path), fix="Check the path") from None
    except ValueError:
        raise DataError(
            "it holds no key, which is one word of ASCII",
            where=str(path),
            fix="Give a file with the admin key alone, or `api_tokens` for TabbyAPI's api_tokens.yml",
        ) from None


def _no_tokens(path: Path, why: str) -> DataError:
    return DataError(f"these are not TabbyAPI tokens: {why}", where=str(path), fix="It needs api_key and admin_key")


def _write(path: Path, content: object) -> None:
    # O_EXCL with a mode: a file that is made readable and restricted afterwards was readable for a moment.
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ONLY)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        os.fchmod(stream.fileno(), _OWNER_ONLY)  # A umask takes bits away from the mode; the owner keeps both.
        yaml.safe_dump(content, stream)
        stream.flush()
        os.fsync(stream.fileno())
