"""The four disjoint token sets; the rows themselves are arrays and stay outside the schema."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from exltune.schema.base import Record
from exltune.schema.defaults import DEFAULT_ROW_LENGTH, DEFAULT_ROWS


class Split(StrEnum):
    """The use of a token set (DESIGN.md section 8)."""

    CALIBRATION = "calibration"
    SEARCH = "search"
    SELECTION = "selection"
    HELD_OUT = "held_out"


class TokenSetInfo(Record):
    """Size, hash and overlap of one token set.

    domains: rows by domain. rejected: by domain, the rows left out because other sets hold their text. overlap: mean
    share of a row's 13-grams that stand in another set nevertheless.
    """

    split: Split
    rows: int
    row_length: int
    tokens: int
    sha256: str
    domains: dict[str, int]
    rejected: dict[str, int]
    overlap: float

    @property
    def rows_rejected(self) -> int:
        """Rows left out, over all domains."""
        return sum(self.rejected.values())


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


class DataOptions(Record):
    """All that the token sets of a model follow from.

    Attributes:
        texts: Where documents come from.
        sources: The files, where they are the user's.
        weights: Domain -> its share of every set, relative to the others, whose default is 1.
        samples: Documents taken of each domain, a fixed choice whatever the seed; all if None.
        sample_tokens: Tokens after which a document is cut.
        row_length: Tokens in a row.
        rows: Over all four sets together.
        seed: By which texts are dealt to the sets.
    """

    texts: Texts = Texts.BUNDLED
    sources: tuple[DataSource, ...] = ()
    weights: tuple[tuple[str, Weight], ...] = ()
    samples: int | None = Field(default=None, ge=1)
    sample_tokens: int | None = Field(default=None, ge=2)
    row_length: int = Field(default=DEFAULT_ROW_LENGTH, ge=2)
    rows: int = Field(default=DEFAULT_ROWS, ge=16)
    seed: int = 0

    def rows_of(self, split: Split) -> int:
        """Rows of one set."""
        return self.rows * SPLIT_SHARES[split] // 8


class DomainTokens(Record):
    """One domain. samples: documents that it could give; rows: how many of each set are its own."""

    domain: str
    samples: int
    weight: float
    rows: dict[Split, int]
    tokens: dict[Split, int]
    rejected: int


class ExpertLayer(Record):
    """Tokens of the calibration set that a layer's own routing sends to each expert; rare: under the minimum."""

    layer: int
    tokens: dict[str, int]
    rare: tuple[str, ...]


class ExpertUse(Record):
    """Which experts see how many tokens.

    unseen: experts that no token reached. rows_needed: rows over all four sets with which every other expert may be
    expected to see the minimum, if more of the same texts route alike.
    """

    minimum: int
    layers: tuple[ExpertLayer, ...]
    unseen: int
    rows_needed: int


class DataReport(Record):
    """The content of a model's token sets; experts is None for a dense model, and where it was not asked for."""

    model: str
    data: DataOptions
    sets: tuple[TokenSetInfo, ...]
    domains: tuple[DomainTokens, ...]
    experts: ExpertUse | None
