"""The only memory of scores: it stands before an engine, knows mixes and rows by content, and keeps all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from exltune.engines.base import Engine, Progress
from exltune.engines.tasks import RunsTasks, ScoreTask, run_tasks
from exltune.errors import NonFiniteError
from exltune.metrics import score_from_rows
from exltune.schema.mix import Mix, MixKey
from exltune.schema.probe import ProbedMix
from exltune.schema.score import Score
from exltune.store.probes import SUMS, ProbeStore, RowId, Sums, content_key, row_ids, rows_key, score_sums

if TYPE_CHECKING:
    from torch import Tensor

#: Mixes and the rows of a token set, first to last, that they are wanted on.
Batch = tuple[Sequence[Mix], range]

#: Told how many of all mixes are there already, where some are.
Resumed = Callable[[int, int], None]


@dataclass
class ScoreCounts:
    """reused, scored: mixes whose rows were all there, and those that had to be scored.

    state_bytes: the most hidden states that a call held. ram_bytes, vram_bytes: the most that this process ever took of
    main memory and of one device.
    """

    reused: int = 0
    scored: int = 0
    state_bytes: int = 0
    ram_bytes: int = 0
    vram_bytes: int = 0


class ScoreCache:
    """Scores of one engine, by content: whatever was scored before is never scored again.

    engine: it is asked for missing scores; scores that a task gave are on the disk before the next task begins.
    store: where they are kept, of one reference and one way to compute. content: a mix -> its content, by hash.
    Raises: as Database.
    """

    def __init__(self, engine: Engine, store: ProbeStore, content: Callable[[Mix], ProbedMix]) -> None:
        self.engine, self.store, self.content, self.counts = engine, store, content, ScoreCounts()
        self._sets: dict[str, CachedRows] = {}
        self._keys: dict[MixKey, str] = {}

    def on(self, tokens: Tensor) -> CachedRows:
        """The scores on a token set (rows, T), always the same object for the same tokens."""
        rows = row_ids(tokens.numpy())
        return self._sets.setdefault(rows_key(rows), CachedRows(self, tokens, rows))

    def key(self, mix: Mix) -> str:
        """The key of a mix: sha256 (hex) of its content."""
        if mix.key not in self._keys:
            self._keys[mix.key] = content_key(self.content(mix))
        return self._keys[mix.key]

    def forget_names(self) -> None:
        """Choices may stand for other directories from now on."""
        self._keys.clear()

    def score(
        self, mixes: Sequence[Mix], tokens: Tensor, progress: Progress | None = None, resumed: Resumed | None = None
    ) -> list[Score]:
        """As Engine.score, but for stored scores."""
        return self.on(tokens).score(mixes, progress=progress, resumed=resumed)


@dataclass
class CachedRows:
    """Scores on one token set.

    tokens: (rows, T). dropped: names of mixes whose scores are NaN, by content; they are asked for once.

    Which mixes run together follows from the question and the memory alone, never from the store: a run that was
    killed and taken up again computes the same as one that was not.
    """

    cache: ScoreCache
    tokens: Tensor
    row_ids: Sequence[RowId]
    dropped: dict[str, str] = field(default_factory=dict)
    _sums: dict[str, Sums] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.row_ids)

    def score(
        self,
        mixes: Sequence[Mix],
        rows: range | None = None,
        progress: Progress | None = None,
        resumed: Resumed | None = None,
    ) -> list[Score]:
        """A score for each mix on rows (all if None). Raises: as Engine.score."""
        rows = range(len(self)) if rows is None else rows
        self.fill([(mixes, rows)], progress, resumed)
        return [self.score_of(mix, rows) for mix in mixes]

    def finite(
        self, mixes: Sequence[Mix], rows: range | None = None, progress: Progress | None = None
    ) -> list[Score | None]:
        """As score, None for a mix whose score is NaN or inf; such mixes are remembered while this object lives."""
        rows = range(len(self)) if rows is None else rows
        by_key = {self.key(mix): mix for mix in mixes}
        while left := {key: mix for key, mix in by_key.items() if key not in self.dropped}:
            # The engine tells by name which ones are not finite.
            named = {f"{number} {mix.name}": key for number, (key, mix) in enumerate(left.items())}
            asked = [left[key].model_copy(update={"name": name}) for name, key in named.items()]
            try:
                self.fill([(asked, rows)], progress)
            except NonFiniteError as error:
                if not error.mixes:
                    raise
                self.dropped |= {named[name]: left[named[name]].name for name in error.mixes}
                continue
            break
        return [None if self.key(mix) in self.dropped else self.score_of(mix, rows) for mix in mixes]

    def fill(self, batches: Sequence[Batch], progress: Progress | None = None, resumed: Resumed | None = None) -> None:
        """Score missing mixes; mixes of a batch run together, batches need not. Raises: as Engine.score."""
        self._recall(self.key(mix) for mixes, _ in batches for mix in mixes)
        tasks = self._missing(batches)
        self._count(batches, resumed)
        if not tasks:
            return
        self.cache.store.check_writable()
        engine, counts = self.cache.engine, self.cache.counts
        for task, found in run_tasks(engine, tasks, self.tokens, progress or _silent):
            counts.state_bytes = max(counts.state_bytes, engine.stats.state_bytes)
            self._keep(task, found)

    def key(self, mix: Mix) -> str:
        """The key of a mix."""
        return self.cache.key(mix)

    def score_of(self, mix: Mix, rows: range) -> Score:
        """The score of a mix on rows that were filled."""
        sums = self._sums[self.key(mix)][:, rows.start : rows.stop]
        return score_from_rows(mix.name, sums, self.tokens.shape[1] - 1)

    def _recall(self, keys: Iterable[str]) -> None:
        """Take scores from the store that have not been looked for yet."""
        fresh = [key for key in dict.fromkeys(keys) if key not in self._sums]
        found = self.cache.store.find(fresh, self.row_ids)
        for key in fresh:
            self._sums[key] = found.get(key, np.full((SUMS, len(self)), np.nan))

    def _missing(self, batches: Sequence[Batch]) -> list[ScoreTask]:
        """Tasks of missing mixes, equal ones once."""
        claimed: set[tuple[str, tuple[int, ...]]] = set()
        tasks = []
        for whole, wanted in batches:
            for mixes, rows in self._parts(tuple(whole), wanted):
                by_rows: dict[tuple[int, ...], list[Mix]] = {}
                for mix in mixes:
                    claim = (self.key(mix), self._lacking(mix, rows))
                    if claim[1] and claim not in claimed:
                        claimed.add(claim)
                        by_rows.setdefault(claim[1], []).append(mix)
                tasks += [ScoreTask(tuple(alike), lacking) for lacking, alike in by_rows.items()]
        return self._shared_out(tasks)

    def _parts(self, mixes: tuple[Mix, ...], rows: range) -> Iterator[tuple[tuple[Mix, ...], range]]:
        """A batch in parts that fit into memory: a kill costs no more than one of them."""
        at_once = self.cache.engine.rows_at_once(mixes, self.tokens.shape[1])
        if not at_once and len(mixes) > 1:
            half = (len(mixes) + 1) // 2
            for part in (mixes[:half], mixes[half:]):
                yield from self._parts(part, rows)
            return
        step = at_once or len(rows)
        for start in range(rows.start, rows.stop, step):
            yield mixes, range(start, min(start + step, rows.stop))

    def _shared_out(self, tasks: list[ScoreTask]) -> list[ScoreTask]:
        """Enough tasks for an engine that runs several at once: a mix's score does not depend on those beside it."""
        engine = self.cache.engine
        parallel = engine.parallel() if tasks and isinstance(engine, RunsTasks) else 1
        while tasks and len(tasks) < parallel:
            largest = max(tasks, key=lambda task: len(task.mixes))
            if len(largest.mixes) < 2:
                break
            half, at = (len(largest.mixes) + 1) // 2, tasks.index(largest)
            parts = (largest.mixes[:half], largest.mixes[half:])
            tasks[at : at + 1] = [ScoreTask(part, largest.rows) for part in parts]
        return tasks

    def _lacking(self, mix: Mix, rows: range) -> tuple[int, ...]:
        """Those of the rows that the mix was not scored on."""
        sums = self._sums[self.key(mix)]
        return tuple(row for row in rows if np.isnan(sums[0, row]))

    def _count(self, batches: Sequence[Batch], resumed: Resumed | None) -> None:
        lacking = [bool(self._lacking(mix, rows)) for mixes, rows in batches for mix in mixes]
        stored = len(lacking) - sum(lacking)
        self.cache.counts.reused += stored
        self.cache.counts.scored += sum(lacking)
        if resumed is not None and stored:
            resumed(stored, len(lacking))

    def _keep(self, task: ScoreTask, found: Sequence[Score]) -> None:
        rows, content = list(task.rows), self.cache.content
        pairs = [(content(mix), score_sums(score)) for mix, score in zip(task.mixes, found, strict=True)]
        broken = tuple(
            mix.name for mix, (_, sums) in zip(task.mixes, pairs, strict=True) if not np.isfinite(sums).all()
        )
        if broken:
            # Our own engines tell by themselves; an engine of others may not.
            raise NonFiniteError(f"the engine gave NaN or inf for {', '.join(broken)}", mixes=broken)
        self.cache.store.add(pairs, [self.row_ids[row] for row in rows], self.tokens.shape[1])
        for mix, (_, sums) in zip(task.mixes, pairs, strict=True):
            self._sums[self.key(mix)][:, rows] = sums


def _silent(done: int, total: int, what: str) -> None:
    """Progress that nobody watches."""
