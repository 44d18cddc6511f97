"""Runs a probe plan: what the store holds is taken from it, the rest is scored and kept as soon as it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from exltune.engines.base import Engine, Progress
from exltune.measure import Batch, ProbePlan
from exltune.metrics import score_from_rows
from exltune.schema.mix import Mix
from exltune.schema.probe import ProbedMix
from exltune.schema.score import Score
from exltune.store.probes import SUMS, ProbeStore, Sums, mix_key, row_ids, score_sums

if TYPE_CHECKING:
    from torch import Tensor

#: Progress of a task is told in thousandths of its passes over a row.
_FINE = 1000


@dataclass(frozen=True, eq=False)
class ProbeTask:
    """Mixes to score on some rows of the search set, by their numbers; their states fit into memory together."""

    mixes: tuple[Mix, ...]
    rows: tuple[int, ...]

    @property
    def passes(self) -> int:
        """What it costs, in passes over one row, were no prefixes shared."""
        return len(self.mixes) * len(self.rows)


class Scorer(Protocol):
    """Whatever scores tasks: an engine here, or several elsewhere."""

    def rows_at_once(self, mixes: Sequence[Mix], length: int) -> int:
        """As Engine.rows_at_once."""
        ...

    def run(
        self, tasks: Sequence[ProbeTask], tokens: Tensor, progress: Progress
    ) -> Iterator[tuple[ProbeTask, list[Score]]]:
        """Tasks with their mixes' scores, in any order, each as soon as it is done."""
        ...


@dataclass
class ProbeCounts:
    """reused, scored: mixes whose rows were in the store, and those that had to be scored.

    state_bytes: the most hidden states that a call held. ram_bytes, vram_bytes: the most that this process ever took of
    main memory and of one device.
    """

    reused: int = 0
    scored: int = 0
    state_bytes: int = 0
    ram_bytes: int = 0
    vram_bytes: int = 0


class EngineScorer:
    """Scores with one engine in this process."""

    def __init__(self, engine: Engine, counts: ProbeCounts) -> None:
        self.engine, self.counts = engine, counts
        self.rows_at_once = engine.rows_at_once

    def run(
        self, tasks: Sequence[ProbeTask], tokens: Tensor, progress: Progress
    ) -> Iterator[tuple[ProbeTask, list[Score]]]:
        """As Scorer.run, in order."""
        watch = Watch(tasks, progress)
        for task in tasks:
            scores = self.engine.score(task.mixes, tokens[list(task.rows)], watch.part(task))
            self.counts.state_bytes = max(self.counts.state_bytes, self.engine.stats.state_bytes)
            watch.finish(task, "")
            yield task, scores


class Watch:
    """Progress over tasks of different cost."""

    def __init__(self, tasks: Iterable[ProbeTask], progress: Progress) -> None:
        self.progress, self.done = progress, 0
        self.total = _FINE * sum(task.passes for task in tasks)
        progress(0, max(1, self.total), "")

    def part(self, task: ProbeTask) -> Progress:
        """Progress of a task under way."""
        share = _FINE * task.passes
        return lambda done, total, what: self.progress(self.done + share * done // max(1, total), self.total, what)

    def finish(self, task: ProbeTask, what: str) -> None:
        """Count a task as done."""
        self.done += _FINE * task.passes
        self.progress(self.done, self.total, what)


@dataclass
class ProbeRun:
    """One plan on one search set. content: a mix -> what it is made of, by hash.

    What is scored together follows from the plan and the memory alone, never from what is in the store: a run that was
    killed and taken up again computes the same as one that was not.
    """

    store: ProbeStore
    scorer: Scorer
    tokens: Tensor
    content: Callable[[Mix], ProbedMix]
    counts: ProbeCounts
    _sums: dict[str, Sums] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rows = row_ids(self.tokens.numpy())

    def run(self, plan: ProbePlan, progress: Progress, resumed: Callable[[int, int], None]) -> dict[str, Score]:
        """Scores by mix name, once the plan is complete; resumed is told how many of its first mixes are stored."""
        scores: dict[str, Score] = {}
        asked: dict[str, int] = {}
        while batches := plan.next(scores):
            keys = {mix.name: mix_key(self.content(mix)) for batch in batches for mix in batch.mixes}
            self._recall(keys.values())
            tasks = self._missing(batches, keys)
            self._count(batches, keys, resumed if not scores else None)
            for task, found in self.scorer.run(tasks, self.tokens, progress):
                self._keep(task, found, keys)
            for batch in batches:
                asked |= {mix.name: max(batch.rows.stop, asked.get(mix.name, 0)) for mix in batch.mixes}
            scores |= {name: self._score(name, keys[name], asked[name]) for name in keys}
        return scores

    def _recall(self, keys: Iterable[str]) -> None:
        """Take from the store what has not been looked for yet."""
        fresh = [key for key in dict.fromkeys(keys) if key not in self._sums]
        found = self.store.find(fresh, self._rows)
        for key in fresh:
            self._sums[key] = found.get(key, np.full((SUMS, len(self._rows)), np.nan))

    def _missing(self, batches: Sequence[Batch], keys: Mapping[str, str]) -> list[ProbeTask]:
        """Tasks of what is not there, equal mixes once."""
        claimed: set[tuple[str, tuple[int, ...]]] = set()
        tasks = []
        for batch in batches:
            for mixes, rows in self._parts(batch.mixes, batch.rows):
                by_rows: dict[tuple[int, ...], list[Mix]] = {}
                for mix in mixes:
                    claim = (keys[mix.name], self._lacking(keys[mix.name], rows))
                    if claim[1] and claim not in claimed:
                        claimed.add(claim)
                        by_rows.setdefault(claim[1], []).append(mix)
                tasks += [ProbeTask(tuple(alike), lacking) for lacking, alike in by_rows.items()]
        return tasks

    def _parts(self, mixes: tuple[Mix, ...], rows: range) -> Iterator[tuple[tuple[Mix, ...], range]]:
        """A batch in parts that fit into memory: a kill costs no more than one of them."""
        at_once = self.scorer.rows_at_once(mixes, self.tokens.shape[1])
        if not at_once and len(mixes) > 1:
            half = (len(mixes) + 1) // 2
            for part in (mixes[:half], mixes[half:]):
                yield from self._parts(part, rows)
            return
        step = at_once or len(rows)
        for start in range(rows.start, rows.stop, step):
            yield mixes, range(start, min(start + step, rows.stop))

    def _lacking(self, key: str, rows: range) -> tuple[int, ...]:
        """Those of the rows that were not scored."""
        return tuple(row for row in rows if np.isnan(self._sums[key][0, row]))

    def _count(
        self, batches: Sequence[Batch], keys: Mapping[str, str], resumed: Callable[[int, int], None] | None
    ) -> None:
        pairs = [(keys[mix.name], batch.rows) for batch in batches for mix in batch.mixes]
        lacking = [bool(self._lacking(*pair)) for pair in pairs]
        stored = len(lacking) - sum(lacking)
        self.counts.reused += stored
        self.counts.scored += sum(lacking)
        if resumed is not None and stored:
            resumed(stored, len(lacking))

    def _keep(self, task: ProbeTask, found: Sequence[Score], keys: Mapping[str, str]) -> None:
        rows = list(task.rows)
        pairs = [(self.content(mix), score_sums(score)) for mix, score in zip(task.mixes, found, strict=True)]
        self.store.add(pairs, [self._rows[row] for row in rows], self.tokens.shape[1])
        for mix, (_, sums) in zip(task.mixes, pairs, strict=True):
            self._sums[keys[mix.name]][:, rows] = sums

    def _score(self, name: str, key: str, rows: int) -> Score:
        return score_from_rows(name, self._sums[key][:, :rows], self.tokens.shape[1] - 1)
