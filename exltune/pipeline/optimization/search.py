"""Run a search: what it proposes is scored in batches, each kept as soon as it is done."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from exltune.engines.base import Engine, Progress
from exltune.errors import NonFiniteError
from exltune.metrics import row_means
from exltune.pipeline.common.reporter import Reporter
from exltune.schema.candidate import Candidate
from exltune.schema.mix import Choice, Mix
from exltune.schema.score import Score
from exltune.schema.search import ScoredMix
from exltune.search import OF_BASELINE, History, Proposal, Search
from exltune.search.loop.history import MixKey, mix_key

if TYPE_CHECKING:
    from torch import Tensor

#: Progress is counted in thousandths of a pass.
_MILLI = 1000


@dataclass
class Scorer:
    """Scores mixes on rows of a token set (rows, T); those that are not finite are dropped and remembered.

    dropped: names of such mixes, by content: other mixes may bear the same name.
    """

    engine: Engine
    tokens: Tensor
    dropped: dict[MixKey, str] = field(default_factory=dict)

    def scores(self, mixes: Sequence[Mix], rows: slice, progress: Progress | None = None) -> list[Score | None]:
        """A score for each mix, None for a dropped one. Raises: what the engine raises for anything else."""
        by_key = {mix_key(mix.choices): mix for mix in mixes}
        while left := {key: mix for key, mix in by_key.items() if key not in self.dropped}:
            # The engine tells by name which ones are not finite.
            named = {f"{number} {mix.name}": key for number, (key, mix) in enumerate(left.items())}
            asked = [left[key].model_copy(update={"name": name}) for name, key in named.items()]
            try:
                found = self.engine.score(asked, self.tokens[rows], progress)
            except NonFiniteError as error:
                if not error.mixes:
                    raise
                self.dropped |= {named[name]: left[named[name]].name for name in error.mixes}
                continue
            scores = dict(zip(left, found, strict=True))
            return [scores.get(mix_key(mix.choices)) for mix in mixes]
        return [None] * len(mixes)


def score_baselines(baselines: Sequence[Candidate], scorer: Scorer, history: History, progress: Progress) -> None:
    """Score baselines on all rows and add them to the history, each mix once."""
    distinct = list({mix_key(baseline.mix.choices): baseline for baseline in reversed(baselines)}.values())[::-1]
    found = scorer.scores([baseline.mix for baseline in distinct], slice(None), progress)
    history.add(
        [
            _scored(f"{OF_BASELINE}{baseline.name}", baseline.mix.choices, baseline.size.size_bytes, _rows(score))
            for baseline, score in zip(distinct, found, strict=True)
            if score is not None
        ]
    )


def run_rounds(search: Search, scorer: Scorer, reporter: Reporter, *, seconds: float | None = None) -> None:
    """Propose, score and learn until the passes or the time are spent or nothing new is found."""
    began = time.monotonic()
    slowest = 0.0
    with reporter.stage("Searching") as progress:
        watch = _Watch(search, progress)
        _score_proposals(search.first(), search, scorer, slice(0, search.ledger.rows), watch)
        while seconds is None or time.monotonic() - began + slowest < seconds:
            start = time.monotonic()
            proposals = search.propose()
            if not proposals:
                return
            _score_proposals(proposals, search, scorer, slice(0, search.ledger.half), watch)
            rest = slice(search.ledger.half, search.ledger.rows)
            _score_proposals(search.survivors(proposals), search, scorer, rest, watch)
            done = search.conclude(proposals)
            incumbent = ", ".join(f"{kld:.4f}" for kld in done.incumbent_kld if kld is not None)
            watch.what = f"round {done.number}: holds KL {incumbent}"
            slowest = max(slowest, time.monotonic() - start)


@dataclass
class _Watch:
    """Turns batches into progress over all passes."""

    search: Search
    progress: Progress
    what: str = "first mix"

    def batch(self, cost: float) -> Progress:
        """Progress of a batch that costs so many passes."""
        before, total = self.search.ledger.passes, self.search.settings.passes

        def report(done: int, of: int, _: str) -> None:
            spent = min(before + cost * done / max(of, 1), total)
            self.progress(round(_MILLI * spent), round(_MILLI * total), self.what)

        return report


def _score_proposals(proposals: Sequence[Proposal], search: Search, scorer: Scorer, rows: slice, watch: _Watch) -> None:
    """Score rows of mixes, behind those that they have been scored on already, and keep them."""
    if not proposals or rows.start >= rows.stop:
        return
    known = len(search.ledger.history.mixes)
    mixes = [Mix(name=f"{one.idea.source} {known + n}", choices=one.choices) for n, one in enumerate(proposals, 1)]
    cost = len(proposals) * (rows.stop - rows.start) / search.ledger.rows
    found = scorer.scores(mixes, rows, watch.batch(cost))
    history = search.ledger.history
    kept = []
    for one, score in zip(proposals, found, strict=True):
        if score is None:
            search.ledger.drop(one.choices, rows.stop - rows.start)
            continue
        before = history.get(one.choices)
        earlier = before.kld_rows[: rows.start] if before is not None else ()
        kept.append(_scored(one.idea.source, one.choices, one.size_bytes, earlier + _rows(score)))
    history.add(kept)


def _scored(source: str, choices: Mapping[str, Choice], size_bytes: int, rows: tuple[float, ...]) -> ScoredMix:
    return ScoredMix(source=source, choices=dict(choices), size_bytes=size_bytes, kld_rows=rows)


def _rows(score: Score) -> tuple[float, ...]:
    return tuple(np.asarray(row_means(score.kl_ref_mix, score.positions)).tolist())
