"""Python arguments, checked one by one: an error names the argument, its value, and the value that is wanted."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from exltune.budget import parse_cache, parse_gpus, parse_size
from exltune.errors import UsageError
from exltune.schema.hardware import CacheBits

#: A path, as the standard library takes it.
PathArgument: TypeAlias = str | os.PathLike[str]
#: Bytes, or text with a unit: 120 * 2**30, "120GiB".
SizeArgument: TypeAlias = int | str
#: Bits of the cache's keys and values: "5,4", (5, 4), "fp16"; "auto" lets the search choose them.
CacheArgument: TypeAlias = str | tuple[int, int] | CacheBits

Found = TypeVar("Found")
_AUTO: Literal["auto"] = "auto"
_SHOWN_CHARACTERS = 60


def wrong(name: str, value: object, wanted: str) -> UsageError:
    """The error for an argument of a wrong type or value."""
    shown = repr(value)
    shown = shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]}..."
    return UsageError(f"`{name}` is {shown} ({type(value).__name__})", fix=f"Give {wanted}")


def path(name: str, value: object, wanted: str = "a path (str or PathLike)") -> Path:
    """A path. Raises: UsageError."""
    if not isinstance(value, (str, os.PathLike)) or isinstance(found := os.fspath(value), bytes) or not found:
        raise wrong(name, value, wanted)
    return Path(found)


def paths(name: str, value: object, wanted: str = "a list of paths") -> tuple[Path, ...]:
    """Several paths. Raises: UsageError, also for one path alone, which is a sequence of characters."""
    if isinstance(value, (str, bytes, os.PathLike)) or not isinstance(value, Iterable):
        raise wrong(name, value, wanted)
    return tuple(path(f"{name}[{number}]", one) for number, one in enumerate(value))


def text(name: str, value: object, wanted: str = "text (str)") -> str:
    """Text. Raises: UsageError."""
    if not isinstance(value, str):
        raise wrong(name, value, wanted)
    return value


def flag(name: str, value: object) -> bool:
    """True or False. Raises: UsageError."""
    if not isinstance(value, bool):
        raise wrong(name, value, "True or False")
    return value


def number(name: str, value: object, wanted: str = "a number", *, least: float = -math.inf) -> float:
    """A finite number, which no text is. Raises: UsageError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < least:
        raise wrong(name, value, wanted)
    return float(value)


def numbers(name: str, value: object, wanted: str) -> tuple[float, ...]:
    """One number or several. Raises: UsageError."""
    if isinstance(value, (int, float)):
        return (number(name, value, wanted),)
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise wrong(name, value, wanted)
    return tuple(number(f"{name}[{place}]", one) for place, one in enumerate(value))


def whole(name: str, value: object, wanted: str = "a whole number", *, least: int | None = None) -> int:
    """A whole number. Raises: UsageError."""
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        raise wrong(name, value, wanted)
    return value


def one_of(name: str, value: object, choices: Iterable[Found]) -> Found:
    """One of a few values. Raises: UsageError."""
    known = tuple(choices)
    for one in known:
        if type(one) is type(value) and one == value:
            return one
    raise wrong(name, value, f"one of {', '.join(map(repr, known))}")


def size(name: str, value: object) -> int:
    """Bytes. Raises: UsageError."""
    if isinstance(value, str):
        return parse_size(value, f"`{name}`")
    return whole(name, value, 'bytes (int), or a size with its unit such as "120GiB"', least=1)


def cards(name: str, value: object) -> tuple[int, ...]:
    """Bytes of every card, in order. Raises: UsageError."""
    if isinstance(value, str):
        return parse_gpus(value, f"`{name}`")
    if isinstance(value, (bytes, Mapping)) or not isinstance(value, Iterable):
        raise wrong(name, value, '"6x24GiB", or a list with the size of every card')
    return tuple(size(f"{name}[{place}]", one) for place, one in enumerate(value))


def cache(name: str, value: object) -> CacheBits:
    """Bits of the cache's keys and values. Raises: UsageError."""
    if isinstance(value, CacheBits):
        return value
    if isinstance(value, tuple) and len(value) == 2:
        return parse_cache(",".join(str(whole(name, bits)) for bits in value), f"`{name}`")
    if not isinstance(value, str):
        raise wrong(name, value, '"5,4" (bits of keys and values), "fp16" or "auto"')
    return parse_cache(value, f"`{name}`")


def cache_or_auto(name: str, value: object) -> CacheBits | Literal["auto"]:
    """The same, or "auto". Raises: UsageError."""
    return _AUTO if value == _AUTO else cache(name, value)


def number_or_auto(name: str, value: object) -> float | Literal["auto"]:
    """A number, or "auto". Raises: UsageError."""
    return _AUTO if value == _AUTO else number(name, value, 'a number or "auto"')


def optional(convert: Callable[[str, object], Found], name: str, value: object) -> Found | None:
    """None as it is, anything else converted. Raises: UsageError."""
    return None if value is None else convert(name, value)


def refuse_unknown(given: Mapping[str, Any], known: Iterable[str], function: str) -> None:
    """Raises: TypeError as Python does for a keyword that a function does not take."""
    allowed = set(known)
    for name in given:
        if name not in allowed:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")
