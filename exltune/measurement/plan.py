"""The mixes of a measurement, a batch at a time; the next batch may depend on earlier ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from exltune.schema.mix import Mix
from exltune.schema.score import Score


@dataclass(frozen=True)
class Batch:
    """Mixes that are scored together on rows [rows.start, rows.stop) of the search set."""

    mixes: tuple[Mix, ...]
    rows: range


class ProbePlan(Protocol):
    """Decides the next mixes from earlier scores; it holds no state beyond its settings."""

    def next(self, scores: Mapping[str, Score]) -> Sequence[Batch]:
        """Batches to score next, given all scores so far by mix name; nothing when the measurement is complete.

        A mix's rows are scored in order: a Score holds those from the first on. Batches are independent of each other.
        """
        ...
