"""Numbers of a config.json, with one message where one is missing or no number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exltune.errors import NotAModelError

_MEND = "Correct config.json, or download it again"


class ConfigReader:
    """Typed values of a config; every message names the field."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self.config, self.where = config, where

    def has(self, key: str) -> bool:
        """Whether the config gives a value that is not null."""
        return self.config.get(key) is not None

    def number(self, *keys_and_default: str | int, minimum: int = 1, maximum: int | None = None) -> int:
        """The first of the keys that the config has; a trailing int is the default. Raises: NotAModelError."""
        keys = [key for key in keys_and_default if isinstance(key, str)]
        found = next((self.config[key] for key in keys if self.has(key)), None)
        if found is None and isinstance(keys_and_default[-1], int):
            found = keys_and_default[-1]
        names = " / ".join(keys)
        if found is None:
            raise self.error(f"{names} is missing")
        if isinstance(found, bool) or not isinstance(found, int) or found < minimum:
            kind = "a positive whole number" if minimum == 1 else f"a whole number from {minimum} on"
            raise self.error(f"{names} is {found!r} where {kind} is needed")
        if maximum is not None and found > maximum:
            raise self.error(f"{names} is {found}, and no model has more than {maximum}")
        return found

    def names(self, key: str, length: int, known: Mapping[str, object]) -> list[str]:
        """A list of `length` known words. Raises: NotAModelError."""
        found = self.config.get(key)
        if not isinstance(found, list) or len(found) != length:
            raise self.error(f"{key} is not a list of {length} entries, one for each layer")
        for entry in found:
            if not isinstance(entry, str) or entry not in known:
                raise self.error(f"{key} holds {entry!r} where one of {', '.join(known)} is needed")
        return found

    def error(self, what: str) -> NotAModelError:
        """The error to raise for this config."""
        return NotAModelError(what, where=self.where, fix=_MEND)


def text_reader(config: Mapping[str, Any], where: str) -> ConfigReader:
    """The language model's part of a config: `text_config` where it is nested. Raises: NotAModelError."""
    nested = config.get("text_config", config)
    if not isinstance(nested, Mapping):
        raise NotAModelError(f"text_config is {nested!r} where an object is needed", where=where, fix=_MEND)
    return ConfigReader(nested, where)
