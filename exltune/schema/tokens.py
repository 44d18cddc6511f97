"""The four disjoint token sets; the rows themselves are arrays and stay outside the schema."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

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


class Texts(StrEnum):
    """Where documents come from: exllamav3's bundled texts, the user's files, or those of our own small models."""

    BUNDLED = "bundled"
    FILES = "files"
    SMALL_MODEL = "small-model"


#: Eighths of all documents, and of all rows, that each set gets.
SPLIT_SHARES = {Split.CALIBRATION: 2, Split.SEARCH: 2, Split.SELECTION: 1, Split.HELD_OUT: 3}


class DataSource(Record):
    """A file, or a folder of files; the path `bundled` stands for exllamav3's texts.

    domain: the kind of text, by which documents are dealt and weighed; None: every file is named after itself.
    """

    path: str
    domain: str | None = None


#: The path that stands for exllamav3's bundled texts beside the user's own.
BUNDLED = "bundled"

Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class DataSettings(Record):
    """All that the token sets of a model follow from: `rows` is their number over all four sets together.

    weights: domain -> its share of every set, relative to the others, whose default is 1. samples: documents taken of
    each domain, a fixed choice whatever the seed; all if None. sample_tokens: tokens after which a document is cut.
    """

    texts: Texts = Texts.BUNDLED
    sources: tuple[DataSource, ...] = ()
    weights: tuple[tuple[str, Weight], ...] = ()
    samples: int | None = Field(default=None, ge=1)
    sample_tokens: int | None = Field(default=None, ge=2)
    row_length: int = Field(default=256, ge=2)
    rows: int = Field(default=256, ge=16)
    seed: int = 0

    def rows_of(self, split: Split) -> int:
        """Rows of one set."""
        return self.rows * SPLIT_SHARES[split] // 8
