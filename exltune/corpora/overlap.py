"""Which rows share text with another token set, by hashes of their n-grams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exltune.schema.tokens import Split

#: A row is rejected where this share of its 13-grams, or any 64-gram, stands in another set (DESIGN.md section 8).
SHORT_GRAM, LONG_GRAM = 13, 64
MOST_SHARED = 0.2

IdArray = NDArray[np.integer[Any]]


class OverlapIndex:
    """The n-grams of the rows accepted so far, by token set."""

    def __init__(self) -> None:
        self._short: dict[Split, set[int]] = {split: set() for split in Split}
        self._long: dict[Split, set[int]] = {split: set() for split in Split}

    def accepts(self, row: IdArray, split: Split) -> bool:
        """Whether a row (row_length,) may join a set: too little of it stands in the other sets."""
        if _elsewhere(ngram_hashes(row, LONG_GRAM), split, self._long):
            return False
        return self.shared(row, split) < MOST_SHARED

    def shared(self, row: IdArray, split: Split) -> float:
        """Share of a row's 13-grams that stand in another set than `split`; 0 for rows shorter than that."""
        grams = ngram_hashes(row, SHORT_GRAM)
        found = _elsewhere(grams, split, self._short)
        return sum(map(found.__contains__, grams)) / max(1, len(grams))

    def add(self, row: IdArray, split: Split) -> None:
        """Take a row into a set."""
        self._short[split].update(ngram_hashes(row, SHORT_GRAM))
        self._long[split].update(ngram_hashes(row, LONG_GRAM))


def ngram_hashes(row: IdArray, length: int) -> list[int]:
    """64-bit hashes of all n-grams of a row (row_length,); empty where the row is shorter than `length`.

    Source: multilinear hashing of mixed tokens, Lemire and Kaser 2014, "Strongly universal string hashing is fast".
    """
    if len(row) < length:
        return []
    weights = _mixed(np.arange(1, length + 1, dtype=np.uint64)) | np.uint64(1)
    windows = np.lib.stride_tricks.sliding_window_view(_mixed(row.astype(np.uint64)), length)
    hashes: list[int] = (windows * weights).sum(axis=1, dtype=np.uint64).tolist()
    return hashes


def _elsewhere(grams: Sequence[int], split: Split, grams_of: Mapping[Split, set[int]]) -> set[int]:
    """Those of the n-grams that stand in another set."""
    return {gram for other, members in grams_of.items() if other is not split for gram in members.intersection(grams)}


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread small integers over 64 bits (the finalizer of splitmix64)."""
    mixed = values * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
