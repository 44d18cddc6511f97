"""The four disjoint token sets; the rows themselves are arrays and stay outside the schema."""

from __future__ import annotations

from enum import StrEnum

from exltune.schema.base import Record


class Split(StrEnum):
    """What a token set may be used for (DESIGN.md section 8)."""

    CALIBRATION = "calibration"
    SEARCH = "search"
    SELECTION = "selection"
    HELD_OUT = "held_out"


class TokenSetInfo(Record):
    """Size, hash and overlap of one token set."""

    split: Split
    rows: int
    row_length: int
    tokens: int
    sha256: str
    domains: dict[str, int]
    rows_rejected: int
    overlap: float
