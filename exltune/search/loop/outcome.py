"""The result of a search: standings of all methods on fresh rows, and the recipe that is handed over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from exltune.errors import NonFiniteError, UsageError
from exltune.schema.candidate import Candidate
from exltune.schema.heuristics import Heuristics
from exltune.schema.mix import CACHE_K, CACHE_V
from exltune.schema.provenance import Provenance
from exltune.schema.recipe import Recipe, RecipeDetail
from exltune.schema.score import Score
from exltune.schema.search import FrontPoint, SearchDetail, Standing
from exltune.search.law.surrogate import Surrogate
from exltune.search.loop.history import History
from exltune.search.loop.loop import Search
from exltune.search.loop.ranking import SEARCHED, distinct_candidates, standings
from exltune.search.problem.problem import SearchProblem
from exltune.search.rules.wishes import out_of_reach, unmatched
from exltune.search.solve.exact import solve
from exltune.search.space.space import Space


@dataclass(frozen=True)
class SearchOutcome:
    """Standings of every size, the law at the end, the loop that was run (None without), and mixes that were NaN."""

    standings: Sequence[Sequence[Standing]]
    law: Surrogate
    search: Search | None
    dropped: tuple[str, ...]


def rank_by_prediction(problem: SearchProblem, baselines: Sequence[Candidate], law: Surrogate) -> list[Standing]:
    """Standings by the law's predictions, its own optimum among them."""
    best = solve(problem, law.energies())
    assert best is not None, "a problem is feasible when it is made"
    return standings(problem, distinct_candidates(problem, baselines, {"search-law": best}), law)


def rank_by_scores(
    problem: SearchProblem,
    candidates: Sequence[Candidate],
    law: Surrogate,
    history: History,
    scores: Mapping[str, Score],
) -> list[Standing]:
    """Standings by scores on rows that no fit has seen, by candidate name; candidates without one are left out.

    Raises: NonFiniteError where nothing is left that may be handed over.
    """
    if not scores:
        raise NonFiniteError("no mix at this size has finite scores", fix="Check the base quants")
    ranked = standings(problem, candidates, law, history, scores)
    if not ranked[0].eligible:
        raise NonFiniteError(
            f"no mix at {problem.target_bpw:.3f} bpw that keeps the floors and fits has finite scores",
            fix="Check the base quants",
        )
    return ranked


def recipe_of(space: Space, winner: Standing, detail: SearchDetail, provenance: Provenance) -> Recipe:
    """The recipe of the mix that is handed over. provenance: the measurement's."""
    problem = space.problem
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
            provenance=provenance,
        ),
    )


def front_point(problem: SearchProblem, winner: Standing, recipe: str | None) -> FrontPoint:
    """The mix that is handed over at one size of several. recipe: the file that it is written to."""
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


def check_names(names: Iterable[str]) -> None:
    """Raise UsageError for rules that bear the name of another method, or of the search's own mixes."""
    for name, count in Counter(names).items():
        if count > 1 or name.startswith(SEARCHED):
            raise UsageError(f"there is a method named {name!r} already", fix="Give your rules another name")


def without_effect(
    problem: SearchProblem, rules: Sequence[Heuristics], floors: Sequence[Heuristics]
) -> tuple[str, ...]:
    """Those parts of the user's own rules and floors that change nothing, in words."""
    lost = [warning for one in (*rules, *floors) for warning in unmatched(one, problem.inventory)]
    lost += [warning for one in rules for warning in out_of_reach(one, problem.inventory, problem.widths)]
    return tuple(dict.fromkeys(lost))
