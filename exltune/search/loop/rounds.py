"""Run a search: its proposals are scored in batches, each kept as soon as it is done."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from exltune.engines.base import Progress
from exltune.metrics import row_means
from exltune.schema.candidate import Candidate
from exltune.schema.mix import Choice, Mix
from exltune.schema.score import Score
from exltune.schema.search import ScoredMix
from exltune.search.loop.history import OF_BASELINE, History
from exltune.search.loop.loop import Search
from exltune.search.loop.sources import Proposal

#: Progress is counted in thousandths of a pass.
_MILLI = 1000


class RowScores(Protocol):
    """Scores on the search set, remembered for good: a search that is taken up again asks everything again."""

    def __len__(self) -> int:
        """Rows of the set."""
        ...

    def finite(
        self, mixes: Sequence[Mix], rows: range | None = None, progress: Progress | None = None
    ) -> list[Score | None]:
        """A score for each mix on rows (all if None), None where it is NaN or inf."""
        ...


def score_baselines(baselines: Sequence[Candidate], scores: RowScores, history: History, progress: Progress) -> None:
    """Score baselines on all rows and add them to the history, each mix once."""
    distinct = list({baseline.mix.key: baseline for baseline in reversed(baselines)}.values())[::-1]
    found = scores.finite([baseline.mix for baseline in distinct], progress=progress)
    history.add(
        [
            _scored(f"{OF_BASELINE}{one.name}", one.mix.choices, one.size_bytes, _rows(score))
            for one, score in zip(distinct, found, strict=True)
            if score is not None
        ]
    )


def run_rounds(search: Search, scores: RowScores, progress: Progress, *, seconds: float | None = None) -> None:
    """Propose, score and learn until the passes or the time are spent or nothing new is found."""
    began = time.monotonic()
    slowest = 0.0
    watch = _Watch(search, progress)
    _score_proposals(search.first(), search, scores, range(search.ledger.rows), watch)
    while seconds is None or time.monotonic() - began + slowest < seconds:
        start = time.monotonic()
        proposals = search.propose()
        if not proposals:
            return
        _score_proposals(proposals, search, scores, range(search.ledger.half), watch)
        rest = range(search.ledger.half, search.ledger.rows)
        _score_proposals(search.survivors(proposals), search, scores, rest, watch)
        done = search.conclude(proposals)
        incumbent = ", ".join(f"{kld:.4f}" for kld in done.incumbent_kld if kld is not None)
        watch.what = f"round {done.number}: incumbent KL(ref‖mix) {incumbent}"
        slowest = max(slowest, time.monotonic() - start)


@dataclass
class _Watch:
    """Turns batches into progress over all passes."""

    search: Search
    progress: Progress
    what: str = "first mix"

    def batch(self, cost: float) -> Progress:
        """Progress of a batch that costs so many passes."""
        before, total = self.search.ledger.passes, self.search.options.passes

        def report(done: int, of: int, _: str) -> None:
            spent = min(before + cost * done / max(of, 1), total)
            self.progress(round(_MILLI * spent), round(_MILLI * total), self.what)

        return report


def _score_proposals(
    proposals: Sequence[Proposal], search: Search, scores: RowScores, rows: range, watch: _Watch
) -> None:
    """Score rows of mixes, behind those that they have been scored on already, and take them in."""
    if not proposals or not rows:
        return
    known = len(search.ledger.history.mixes)
    mixes = [Mix(name=f"{one.source} {known + n}", choices=one.candidate.choices) for n, one in enumerate(proposals, 1)]
    cost = len(proposals) * len(rows) / search.ledger.rows
    found = scores.finite(mixes, rows, watch.batch(cost))
    history = search.ledger.history
    kept = []
    for one, score in zip(proposals, found, strict=True):
        if score is None:
            search.ledger.drop(one.candidate.choices, len(rows))
            continue
        before = history.get(one.candidate.choices)
        earlier = before.kld_rows[: rows.start] if before is not None else ()
        kept.append(_scored(one.source, one.candidate.choices, one.size_bytes, earlier + _rows(score)))
    history.add(kept)


def _scored(source: str, choices: Mapping[str, Choice], size_bytes: int, rows: tuple[float, ...]) -> ScoredMix:
    return ScoredMix(source=source, choices=dict(choices), size_bytes=size_bytes, kld_rows=rows)


def _rows(score: Score) -> tuple[float, ...]:
    return tuple(np.asarray(row_means(score.kl_ref_mix, score.positions)).tolist())
