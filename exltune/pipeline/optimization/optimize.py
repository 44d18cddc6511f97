"""`exltune optimize`: baselines of every method and a search, judged on fresh rows; the best as a recipe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from exltune.errors import NonFiniteError, UsageError
from exltune.pipeline.common.reporter import Reporter, tell_peaks
from exltune.pipeline.common.session import Session
from exltune.pipeline.measurement.measured import can_score
from exltune.pipeline.optimization.search import run_rounds, score_baselines
from exltune.report.fused import unfused_note
from exltune.schema.base import TOLD
from exltune.schema.heuristics import Heuristics
from exltune.schema.measurement import Measurement
from exltune.schema.mix import CACHE_K, CACHE_V, Choice
from exltune.schema.recipe import Recipe, RecipeDetail
from exltune.schema.search import FrontPoint, SearchDetail, Standing
from exltune.schema.tokens import Split
from exltune.search import (
    History,
    Knobs,
    Search,
    SearchOptions,
    SearchProblem,
    Surrogate,
    baseline_mixes,
    knob_study,
    load_all_rules,
    open_storage,
    out_of_reach,
    rule_bits,
    sampler,
    solve,
    storage_errors,
    unmatched,
)
from exltune.search.loop.ranking import SEARCHED, distinct_candidates, standings
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


@dataclass(frozen=True)
class SearchOutcome:
    """Standings of every size, the law at the end, the loop that was run (None without), and mixes that were NaN."""

    standings: Sequence[Sequence[Standing]]
    law: Surrogate
    search: Search | None
    dropped: tuple[str, ...]


def optimize(
    session: Session,
    measurement: Measurement,
    asked: SpaceOptions,
    out: Path | None = None,
    *,
    settings: OptimizeOptions | None = None,
    force: bool = False,
) -> Optimized:
    """Search the best mix within a budget, judge it against every method on fresh rows, and write its recipe.

    session: on what was measured, as session_of gives it. out: the recipe's file; nothing is written without one. Where
    the base quants are not at hand the best prediction wins and nothing is scored. The same call again takes the scores
    that are there already, and comes to the same recipe.
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
        if can_score(measurement, session):
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
        _check_names(baseline.name for baseline in self.baselines[0])
        self.warnings = _warnings(self.problems[0], settings.rules, floors)

    def predict(self) -> SearchOutcome:
        """Rank by prediction alone."""
        law = Surrogate(self.problems[0])
        ranked = []
        for problem, many in zip(self.problems, self.baselines, strict=True):
            best = solve(problem, law.energies())
            assert best is not None, "a problem is feasible when it is made"
            ranked.append(standings(problem, distinct_candidates(problem, many, {"search-law": best}), law))
        return SearchOutcome(ranked, law, None, ())

    def search(self, scores: CachedRows, fresh: CachedRows) -> SearchOutcome:
        """Score baselines, run the loop, and judge all that is left on fresh rows."""
        with storage_errors(self._storage_url() or "memory"):
            return self._search(scores, fresh)

    def _search(self, scores: CachedRows, fresh: CachedRows) -> SearchOutcome:
        rows, history = len(scores), History()
        with self.reporter.stage("Scoring baselines") as progress:
            score_baselines([one for many in self.baselines for one in many], scores, history, progress)
        storage = open_storage(self._storage_url())
        name = self._study_name(scores.cache.engine.name)
        study = knob_study(storage, name, self.sampler, objectives=self.objectives)
        knobs = Knobs(study, self.problems, [rule_bits(problem, self.rules) for problem in self.problems])
        search = Search(self.problems, self.settings.search, rows, history, knobs)
        run_rounds(search, scores, self.reporter, seconds=self.settings.seconds)
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
            if not scores:
                raise NonFiniteError("no mix at this size has finite scores", fix="Check the base quants")
            ranked.append(standings(problem, many, search.surrogate, history, scores))
            if not ranked[-1][0].eligible:
                raise NonFiniteError(
                    f"no mix at {problem.target_bpw:.3f} bpw that keeps the floors and fits has finite scores",
                    fix="Check the base quants",
                )
        return ranked

    def write(self, outcome: SearchOutcome) -> Optimized:
        """The recipe of every size; the one asked for is written last, so that it is there only when all are."""
        points, others = [], []
        for space, ranked in zip(self.spaces[1:], outcome.standings[1:], strict=True):
            recipe = self._recipe(space, ranked, self._detail(outcome, ranked, ()))
            path = self._write(recipe, f"-{space.problem.target_bpw:g}bpw")
            points.append(_point(space.problem, ranked[0], path))
            others.append(recipe)
        first = outcome.standings[0]
        asked = _point(self.problems[0], first[0], None if self.out is None else str(self.out))
        front = tuple(sorted((*points, asked), key=lambda one: one.bpw))
        detail = self._detail(outcome, first, front if points else ())
        recipe = self._recipe(self.spaces[0], first, detail)
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

    def _recipe(self, space: Space, ranked: Sequence[Standing], detail: SearchDetail) -> Recipe:
        problem, winner = space.problem, ranked[0]
        head = problem.inventory.head.id
        k, v = (winner.choices.get(key) for key in (CACHE_K, CACHE_V))
        return Recipe(
            target_bpw=problem.target_bpw,
            achieved_bpw=winner.bpw,
            head_bits=problem.head_bits_of(winner.choices[head]),
            tensors={key: float(winner.choices[g.id]) for g in problem.inventory.groups for key in g.tensors},
            exltune=RecipeDetail(
                source=winner.name,
                choices=winner.choices,
                size_bytes=winner.size_bytes,
                head_choice=winner.choices[head],
                predicted_kld_nats=winner.predicted_kld,
                measured_kld_nats=winner.selection_kld,
                measured_kld_se_nats=winner.selection_kld_se,
                budget=space.budget,
                cache=None if k is None else f"{k},{v}",
                search=detail,
                provenance=self.measurement.exltune.provenance,
            ),
        )

    def _unfused(self, choices: Mapping[str, Choice]) -> tuple[str, ...]:
        problem = self.problems[0]
        return unfused_note({group: float(choices[group]) for group in problem.group_ids}, problem.sizes)

    def _storage_url(self) -> str | None:
        if self.settings.storage is not None or self.out is None:
            return self.settings.storage
        return f"sqlite:///{self.out.with_suffix('.search.db').resolve()}"

    def _study_name(self, engine: str) -> str:
        """Names what is searched, with which rules to turn, for which output."""
        first = self.problems[0]
        search = SEARCH.identity(
            engine=engine,
            measurement=self.measurement,
            budgets=[problem.budget_bytes for problem in self.problems],
            units=[(unit.id, [option.choice for option in unit.options]) for unit in first.units],
            defaults=(first.head_choice, first.extras),
        )
        knobs = KNOBS.identity(search=search, rules=self.rules)
        return f"{knobs[:16]} {self.out.stem}" if self.out is not None else knobs[:16]


def _at(asked: SpaceOptions, targets: Sequence[float]) -> Iterator[SpaceOptions]:
    """The same limits at other targets."""
    return (replace(asked, limits=replace(asked.limits, target_bpw=target)) for target in targets)


def _check_names(names: Iterable[str]) -> None:
    """Raise UsageError for rules that bear the name of another method, or of what the search finds."""
    for name, count in Counter(names).items():
        if count > 1 or name.startswith(SEARCHED):
            raise UsageError(f"there is a method named {name!r} already", fix="Give your rules another name")


def _warnings(problem: SearchProblem, rules: Sequence[Heuristics], floors: Sequence[Heuristics]) -> tuple[str, ...]:
    """What of the user's own rules has no effect."""
    lost = [warning for one in (*rules, *floors) for warning in unmatched(one, problem.inventory)]
    lost += [warning for one in rules for warning in out_of_reach(one, problem.inventory, problem.widths)]
    return tuple(dict.fromkeys(lost))


def _point(problem: SearchProblem, winner: Standing, recipe: str | None) -> FrontPoint:
    return FrontPoint(
        target_bpw=problem.target_bpw,
        bpw=winner.bpw,
        size_bytes=winner.size_bytes,
        winner=winner.name,
        selection_kld=winner.selection_kld,
        selection_kld_se=winner.selection_kld_se,
        predicted_kld=winner.predicted_kld,
        recipe=recipe,
    )
