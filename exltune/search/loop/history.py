"""Every mix that a search has scored so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from exltune.schema.mix import Choice, MixKey, mix_key
from exltune.schema.search import ScoredMix

#: Begin of the source of mixes that come from the methods that the search is compared with.
OF_BASELINE = "baseline "


class History:
    """Scored mixes of one search by their choices: the longest score of every mix.

    A mix has as many rows as were scored, counted from the first of the search set. It lives as long as the search:
    the score cache outlives a kill, and out of it the same search takes the same scores again.
    """

    def __init__(self) -> None:
        self.mixes: dict[MixKey, ScoredMix] = {}

    def add(self, scored: Sequence[ScoredMix]) -> None:
        """Take in scored mixes."""
        for mix in scored:
            key = mix_key(mix.choices)
            known = self.mixes.get(key)
            if known is None or len(known.kld_rows) < len(mix.kld_rows):
                self.mixes[key] = mix

    def get(self, choices: Mapping[str, Choice]) -> ScoredMix | None:
        """The longest score of a mix."""
        return self.mixes.get(mix_key(choices))

    def passes(self, rows: int) -> float:
        """Cost of all mixes but the baselines, in passes over `rows` rows."""
        own = (mix for mix in self.mixes.values() if not mix.source.startswith(OF_BASELINE))
        return sum(len(mix.kld_rows) for mix in own) / rows
