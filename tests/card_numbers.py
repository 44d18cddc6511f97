"""Numbers that a card holds and that none of its JSON files has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

_NUMBER = re.compile(r"-?\d[\d,]*(\.\d+)?")
_TOKEN = re.compile(r"[^\s|()\[\]`*!:;=/]+")
#: Words with digits that name no quantity.
_LABELS = {"exl3", "EXL3", "exllamav3", "exllamav3's", "sha256", "fp16", *(f"Top-{k}" for k in range(1, 6))}
#: What counts as a source: measurements and recipes hold thousands of numbers, and chance would find any in them.
_SOURCES = ("card.json", "evaluations/*.json", "verdicts/*.json")


def unsourced(text: str, folder: Path) -> list[str]:
    """Tokens with digits that no number of the sources rounds to and that are no word of their strings, in order."""
    numbers: list[float] = []
    words: set[str] = set(_LABELS)
    for pattern in _SOURCES:
        for file in folder.glob(pattern):
            _collect(json.loads(file.read_text()), numbers, words)
    return [token for token in _tokens(text) if not (_is_number(token, numbers) or _is_name(token, words))]


def _tokens(text: str) -> Iterable[str]:
    stripped = (token.strip(".,'\"%±") for token in _TOKEN.findall(text))
    return [token for token in stripped if any(letter.isdigit() for letter in token)]


def _is_number(token: str, numbers: list[float]) -> bool:
    if not _NUMBER.fullmatch(token):
        return False
    shown = Decimal(token.replace(",", ""))
    half = float(Decimal(1).scaleb(int(shown.as_tuple().exponent))) / 2
    return any(abs(number - float(shown)) <= half * (1 + 1e-9) for number in numbers)


def _is_name(token: str, words: set[str]) -> bool:
    """A word of the JSON, or two joined by a hyphen: the folder of a download is title-branch."""
    if token in words:
        return True
    return any(token[: at.start()] in words and token[at.end() :] in words for at in re.finditer("-", token))


def _collect(content: Any, numbers: list[float], words: set[str]) -> None:
    if isinstance(content, dict):
        for key, value in content.items():
            _collect(key, numbers, words)
            _collect(value, numbers, words)
    elif isinstance(content, list):
        for value in content:
            _collect(value, numbers, words)
    elif isinstance(content, str):
        words.update(_TOKEN.findall(content))
    elif isinstance(content, int | float) and not isinstance(content, bool):
        numbers.append(float(content))
