"""`exltune optimize`: baselines of every method and a search, judged on fresh rows; the best as a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from exltune.pipeline.common.reporter import Reporter, tell_peaks
from exltune.pipeline.common.session import Session
from exltune.pipeline.measurement.measured import can_score
from exltune.report.fused import unfused_note
from exltune.schema.base import TOLD
from exltune.schema.heuristics import Heuristics
from exltune.schema.measurement import Measurement
from exltune.schema.mix import Choice
from exltune.schema.recipe import Recipe
from exltune.schema.search import FrontPoint, SearchDetail, Standing
from exltune.schema.tokens import Split
from exltune.search import (
    History,
    Knobs,
    Search,
    SearchOptions,
    Surrogate,
    baseline_mixes,
    knob_study,
    load_all_rules,
    open_storage,
    rule_bits,
    sampler,
    storage_errors,
)
from exltune.search.loop.outcome import (
    SearchOutcome,
    check_names,
    front_point,
    rank_by_prediction,
    rank_by_scores,
    recipe_of,
    without_effect,
)
from exltune.search.loop.ranking import distinct_candidates
from exltune.search.loop.rounds import run_rounds, score_baselines
from exltune.search.space.space import Space, SpaceOptions, search_space
from exltune.store.files import locked, refuse_existing_file
from exltune.store.records import write_recipe
from exltune.store.score_cache import CachedRows
from exltune.store.stages import KNOBS, SEARCH


@dataclass(frozen=True)
class OptimizeOptions:
    """How to search. rules: files beside the ones that come with exltune. front: further targets in bpw, each with a
    recipe of its own. storage: URL of the search's storage; a SQLite file beside the recipe if None. seconds: bound of
    the loop's time.
    """

    search: SearchOptions = field(default_factory=SearchOptions)
    rules: tuple[Heuristics, ...] = ()
    front: tuple[float, ...] = ()
    sampler: str = "tpe"
    storage: str | None = field(default=None, metadata={TOLD: True})
    seconds: float | None = None

    def bounds(self) -> tuple[str, ...]:
        """How long to search, as options of the command line."""
        time = () if self.seconds is None else ("--time", f"{self.seconds:g}s")
        return ("--passes", f"{self.search.passes:g}", *time)


@dataclass(frozen=True)
class Optimized:
    """The recipe that is handed over, how all methods stand, and the recipes of the further targets."""

    recipe: Recipe
    detail: SearchDetail
    others: tuple[Recipe, ...] = ()


def optimize(
    session: Session,
    measurement: Measurement,
    asked: SpaceOptions,
    out: Path | None = None,
    *,
    settings: OptimizeOptions | None = None,
    force: bool = False,
    where: str = "measurement",
) -> Optimized:
    """Search the best mix within a budget, judge it against every method on fresh rows, and write its recipe.

    session: on the measured model, from session_of. out: the recipe's file; nothing is written without one. where:
    names the measurement in errors. Where the base quants are not at hand the best prediction wins and nothing is
    scored. The same call again takes the scores that are there already, and comes to the same recipe.
    Raises: BudgetError for an impossible budget, UsageError, DataError where the measurement or its texts cannot be
    read, OutputExistsError, QuantMismatchError, StorageError.
    """
    settings = settings or OptimizeOptions()
    if out is not None:
        refuse_existing_file(out, force=force)
    space = search_space(session.config, session.model, measurement, asked)
    more = [
        search_space(session.config, session.model, measurement, one, like=space) for one in _at(asked, settings.front)
    ]
    run = _Run((space, *more), settings, measurement, out, session.reporter, asked.floors)
    with nullcontext() if out is None else locked(out):
        if can_score(measurement, session, where):
            scores = session.scores
            outcome = run.search(scores.on(session.ids(Split.SEARCH)), scores.on(session.ids(Split.SELECTION)))
            tell_peaks(session.reporter, session.engine)
        else:
            session.reporter.remark("The base quants are not at hand: the best prediction wins, nothing was scored")
            outcome = run.predict()
        return run.write(outcome)


class _Run:
    """One optimization over one or several sizes; the first is the one that was asked for."""

    def __init__(
        self,
        spaces: Sequence[Space],
        settings: OptimizeOptions,
        measurement: Measurement,
        out: Path | None,
        reporter: Reporter,
        floors: Sequence[Heuristics],
    ) -> None:
        self.spaces, self.settings, self.measurement = spaces, settings, measurement
        self.out, self.reporter = out, reporter
        self.problems = [space.problem for space in spaces]
        self.objectives = min(len(self.problems), 2)
        self.sampler = sampler(settings.sampler, settings.search.seed, objectives=self.objectives)
        self.rules = (*load_all_rules(), *settings.rules)
        self.baselines = [baseline_mixes(problem, self.rules) for problem in self.problems]
        check_names(baseline.name for baseline in self.baselines[0])
        self.warnings = without_effect(self.problems[0], settings.rules, floors)

    def predict(self) -> SearchOutcome:
        """Rank by prediction alone."""
        law = Surrogate(self.problems[0])
        pairs = zip(self.problems, self.baselines, strict=True)
        ranked = [rank_by_prediction(problem, many, law) for problem, many in pairs]
        return SearchOutcome(ranked, law, None, ())

    def search(self, scores: CachedRows, fresh: CachedRows) -> SearchOutcome:
        """Score baselines, run the loop, and judge all that is left on fresh rows."""
        with storage_errors(self._storage_url() or "memory"):
            return self._search(scores, fresh)

    def _search(self, scores: CachedRows, fresh: CachedRows) -> SearchOutcome:
        rows, history, storage = len(scores), History(), open_storage(self._storage_url())
        with self.reporter.stage("Scoring baselines") as progress:
            score_baselines([one for many in self.baselines for one in many], scores, history, progress)
        name = self._study_name(scores.cache.engine.name)
        study = knob_study(storage, name, self.sampler, objectives=self.objectives)
        knobs = Knobs(study, self.problems, [rule_bits(problem, self.rules) for problem in self.problems])
        search = Search(self.problems, self.settings.search, rows, history, knobs)
        with self.reporter.stage("Searching") as progress:
            run_rounds(search, scores, progress, seconds=self.settings.seconds)
        ranked = self._judge(search, history, fresh)
        dropped = scores.dropped | fresh.dropped
        return SearchOutcome(ranked, search.surrogate, search, tuple(dict.fromkeys(dropped.values())))

    def _judge(self, search: Search, history: History, fresh: CachedRows) -> list[list[Standing]]:
        """Baselines and finalists of every size on rows that no fit has seen."""
        candidates = [
            distinct_candidates(problem, many, search.finalists(number))
            for number, (problem, many) in enumerate(zip(self.problems, self.baselines, strict=True))
        ]
        with self.reporter.stage("Judging on the selection set") as progress:
            found = iter(fresh.finite([one.mix for many in candidates for one in many], progress=progress))
        ranked = []
        for problem, many in zip(self.problems, candidates, strict=True):
            scores = {one.name: score for one in many if (score := next(found)) is not None}
            ranked.append(rank_by_scores(problem, many, search.surrogate, history, scores))
        return ranked

    def write(self, outcome: SearchOutcome) -> Optimized:
        """The recipe of every size; the one asked for is written last, so that it is there only when all are."""
        points, others, source = [], [], self.measurement.exltune.provenance
        for space, ranked in zip(self.spaces[1:], outcome.standings[1:], strict=True):
            recipe = recipe_of(space, ranked[0], self._detail(outcome, ranked, ()), source)
            path = self._write(recipe, f"-{space.problem.target_bpw:g}bpw")
            points.append(front_point(space.problem, ranked[0], path))
            others.append(recipe)
        first = outcome.standings[0]
        asked = front_point(self.problems[0], first[0], None if self.out is None else str(self.out))
        front = tuple(sorted((*points, asked), key=lambda one: one.bpw))
        detail = self._detail(outcome, first, front if points else ())
        recipe = recipe_of(self.spaces[0], first[0], detail, source)
        self._write(recipe)
        return Optimized(recipe, detail, tuple(others))

    def _write(self, recipe: Recipe, suffix: str = "") -> str | None:
        if self.out is None:
            return None
        path = self.out.with_name(f"{self.out.stem}{suffix}{self.out.suffix}")
        write_recipe(path, recipe)
        return str(path)

    def _detail(
        self, outcome: SearchOutcome, ranked: Sequence[Standing], front: tuple[FrontPoint, ...]
    ) -> SearchDetail:
        search = outcome.search
        return SearchDetail(
            outcome=ranked[0].name,
            searched=search is not None,
            passes=search.ledger.passes if search else 0.0,
            options=self.settings.bounds(),
            rounds=tuple(search.rounds) if search else (),
            standings=tuple(ranked),
            exponents=outcome.law.exponents(),
            dropped=outcome.dropped,
            front=front,
            warnings=(*self.warnings, *self._unfused(ranked[0].choices)),
        )

    def _unfused(self, choices: Mapping[str, Choice]) -> tuple[str, ...]:
        problem = self.problems[0]
        return unfused_note({group: float(choices[group]) for group in problem.group_ids}, problem.sizes)

    def _storage_url(self) -> str | None:
        if self.settings.storage is not None or self.out is None:
            return self.settings.storage
        return f"sqlite:///{self.out.with_suffix('.search.db').resolve()}"

    def _study_name(self, engine: str) -> str:
        """Names the search, by its problem, the rules to turn, and the output."""
        first = self.problems[0]
        search = SEARCH.identity(
            engine=engine,
            measurement=self.measurement,
            budgets=[problem.budget_bytes for problem in self.problems],
            units=[(unit.id, [option.choice for option in unit.options]) for unit in first.units],
            defaults=(first.head_choice, first.extras),
        )
        knobs = KNOBS.identity(search=search, rules=self.rules)
        return f"{knobs[:16]} {self.out.resolve()}" if self.out is not None else knobs[:16]


def _at(asked: SpaceOptions, targets: Sequence[float]) -> Iterator[SpaceOptions]:
    """The same limits at other targets."""
    return (replace(asked, limits=replace(asked.limits, target_bpw=target)) for target in targets)
