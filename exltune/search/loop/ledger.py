"""Scored mixes on the same rows: a history read as numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from exltune.schema.mix import MixKey, mix_key
from exltune.schema.search import ScoredMix
from exltune.search.loop.history import History

Floats = npt.NDArray[np.float64]


class Ledger:
    """A history over a search set of `rows` rows, of which the first `half` are the first rung."""

    def __init__(self, history: History, rows: int) -> None:
        self.history, self.rows, self.half = history, rows, math.ceil(rows / 2)
        self._anchor: ScoredMix | None = None
        self._dropped: dict[MixKey, int] = {}

    def drop(self, choices: Mapping[str, str], rows: int) -> None:
        """Take a mix for known, though its score on so many rows is not finite: it is not to be proposed again."""
        self._dropped[mix_key(choices)] = rows

    @property
    def passes(self) -> float:
        """Passes over the whole search set that the mixes have cost, dropped ones included, baselines not."""
        return self.history.passes(self.rows) + sum(self._dropped.values()) / self.rows

    def known(self, choices: Mapping[str, str], rows: int = 1) -> bool:
        """Whether a mix was scored on at least so many rows, or dropped."""
        found = self.history.get(choices)
        return mix_key(choices) in self._dropped or (found is not None and len(found.kld_rows) >= rows)

    def rows_of(self, choices: Mapping[str, str]) -> Floats | None:
        """(rows,) KL(reference‖mix) of a mix that was scored on all rows."""
        found = self.history.get(choices)
        return np.array(found.kld_rows) if found is not None and len(found.kld_rows) >= self.rows else None

    def first_rung(self, choices: Mapping[str, str]) -> float | None:
        """Mean KL(reference‖mix) on the first rung's rows."""
        found = self.history.get(choices)
        return None if found is None else float(np.mean(found.kld_rows[: self.half]))

    def kld(self, choices: Mapping[str, str]) -> float | None:
        """Mean KL(reference‖mix) on all rows; missing rows are filled in by their difficulty for a mix that has all."""
        found = self.history.get(choices)
        return None if found is None else self._on_all_rows(found)

    def scored(self) -> list[tuple[ScoredMix, float]]:
        """Every mix with its mean KL(reference‖mix) on all rows, as `kld`."""
        return [(mix, self._on_all_rows(mix)) for mix in self.history.mixes.values()]

    def _on_all_rows(self, mix: ScoredMix) -> float:
        mean = float(np.mean(mix.kld_rows))
        anchor = self._whole_mix()
        if len(mix.kld_rows) >= self.rows or anchor is None:
            return mean
        return mean * float(np.mean(anchor.kld_rows) / np.mean(anchor.kld_rows[: len(mix.kld_rows)]))

    def _whole_mix(self) -> ScoredMix | None:
        if self._anchor is None:
            whole = (mix for mix in self.history.mixes.values() if len(mix.kld_rows) >= self.rows)
            self._anchor = next(whole, None)
        return self._anchor
