"""An engine that scores by a known law of exltune.testing.laws, and searches over it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch

from exltune.budget import Limits, ModelProfile, SizeModel
from exltune.budget.plan.limits import weights_budget
from exltune.engines.base import ScoreStats
from exltune.errors import BudgetError, NonFiniteError
from exltune.schema.hardware import Hardware, Use
from exltune.schema.inventory import Inventory
from exltune.schema.mix import Mix
from exltune.schema.probe import ProbedMix, Swap
from exltune.schema.score import Score
from exltune.search import History, Knobs, Search, SearchOptions, SearchProblem, knob_study, open_storage, sampler
from exltune.search.loop.rounds import run_rounds
from exltune.store.probes import ProbeStore
from exltune.store.score_cache import CachedRows, ScoreCache
from exltune.testing.laws import INVENTORY, WIDTHS, Law


@dataclass
class LawEngine:
    """Scores by a law; the token set's first column names the row. nan: mixes that are not finite."""

    law: Law
    inventory: Inventory = INVENTORY
    nan: Callable[[Mapping[str, str]], bool] = lambda choices: False
    scored: list[tuple[Mix, tuple[int, ...]]] = field(default_factory=list)
    name: str = "law"
    model_dir: Path = Path()
    positions: int = 10
    stats: ScoreStats = field(default_factory=ScoreStats)

    def score(self, mixes: Sequence[Mix], tokens: torch.Tensor, progress: Any = None) -> list[Score]:
        """As engines do; all of a batch is lost where one of it is not finite."""
        rows = tuple(tokens[:, 0].tolist())
        assert rows, "an engine is never asked for no rows"
        bad = tuple(mix.name for mix in mixes if self.nan(mix.choices))
        if bad:
            raise NonFiniteError("scores are NaN", mixes=bad)
        self.scored += [(mix, rows) for mix in mixes]
        return [self._score(mix, rows) for mix in mixes]

    def _score(self, mix: Mix, rows: Sequence[int]) -> Score:
        sums = tuple((self.positions * self.law.rows(mix.choices, rows)).tolist())
        return Score(
            mix=mix.name,
            positions=self.positions,
            kl_ref_mix=sums,
            kl_mix_ref=sums,
            nll=sums,
            top_k=(tuple(0 for _ in rows),) * 5,
        )

    def rows_at_once(self, mixes: Sequence[Mix], length: int) -> int:
        """All of them."""
        return 10**6

    @cached_property
    def row_passes(self) -> int:
        return sum(len(rows) for _, rows in self.scored)


def tokens_of(rows: int, first: int = 0) -> torch.Tensor:
    """A token set whose first column names its rows."""
    return torch.arange(first, first + rows)[:, None].repeat(1, 11)


class MemoryStore:
    """A store of scores that keeps nothing: what a cache remembers beyond it lives as long as the cache."""

    def find(self, keys: Iterable[str], rows: Sequence[bytes]) -> dict[str, Any]:
        """Nothing."""
        return {}

    def check_writable(self) -> None:
        """Nothing is written."""

    def add(self, found: Any, rows: Sequence[bytes], row_length: int) -> None:
        """Keep nothing."""


def cache_of(engine: LawEngine) -> ScoreCache:
    """A score cache over an engine, in memory; a mix is known by its choices."""
    return ScoreCache(engine, cast(ProbeStore, MemoryStore()), _content)


def _content(mix: Mix) -> ProbedMix:
    return ProbedMix(name=mix.name, swaps={unit: Swap(choice=choice) for unit, choice in mix.key})


@dataclass
class Ran:
    """A search that was run over a law."""

    search: Search
    engine: LawEngine
    scores: CachedRows


def run_search(
    problems: Sequence[SearchProblem],
    engine: LawEngine,
    settings: SearchOptions | None = None,
    *,
    rows: int = 8,
    scores: ScoreCache | None = None,
    knobs: str | None = "tpe",
) -> Ran:
    """The loop over problems, as the pipeline runs it but without seeds."""
    settings = settings or SearchOptions(passes=16, batch=8)
    storage = open_storage(None)
    turned = None
    if knobs is not None:
        chosen = sampler(knobs, settings.seed, objectives=min(len(problems), 2))
        study = knob_study(storage, "test", chosen, objectives=min(len(problems), 2))
        turned = Knobs(study, problems, [{} for _ in problems])
    search = Search(problems, settings, rows, History(), turned)
    found = (scores or cache_of(engine)).on(tokens_of(rows))
    run_rounds(search, found, lambda done, total, what: None)
    return Ran(search, engine, found)


def bpw_range(inventory: Inventory = INVENTORY, widths: Sequence[float] = WIDTHS) -> tuple[float, float]:
    """Smallest and largest possible target."""
    sizes = SizeModel(inventory, "mul1")
    low, high = (sizes.uniform_size(width, 6).bpw for width in (widths[0], widths[-1]))
    return low, high


def memory_for(profile: ModelProfile, bpw: float, use: Use, *, gpus: int = 0) -> int:
    """Bytes of memory, or of each card, that leave room for weights of so many bpw with a 6-bit head."""
    wanted = profile.sizes.budget_bytes(bpw) + profile.sizes.group_bytes("head", 6.0)
    low, high = 0, 2**36
    while high - low > 1:
        middle = (low + high) // 2
        hardware = Hardware(gpus=(middle,) * gpus) if gpus else Hardware(vram_bytes=middle)
        try:
            enough = weights_budget(profile, Limits(hardware), use, head_bits=6.0).groups_and_head_bytes >= wanted
        except BudgetError:
            enough = False
        low, high = (low, middle) if enough else (middle, high)
    return high
