"""How all methods stand at one size, and which mix is handed over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from exltune.metrics import mean_and_se, paired_difference
from exltune.schema.candidate import Candidate
from exltune.schema.score import Score
from exltune.schema.search import Standing
from exltune.search import History, SearchProblem, Surrogate

#: Begin of the names of the search's own mixes.
SEARCHED = "search"


def distinct_candidates(
    problem: SearchProblem, baselines: Sequence[Candidate], finalists: Mapping[str, Sequence[int]]
) -> list[Candidate]:
    """Baselines and the search's finalists, each mix once, a baseline's name before a finalist's."""
    offered = [*baselines, *(problem.candidate_of(name, assignment) for name, assignment in finalists.items())]
    distinct = {tuple(sorted(candidate.choices.items())): candidate for candidate in reversed(offered)}
    return [candidate for candidate in offered if distinct[tuple(sorted(candidate.choices.items()))] is candidate]


def standings(
    problem: SearchProblem,
    candidates: Sequence[Candidate],
    surrogate: Surrogate,
    history: History | None = None,
    selection: Mapping[str, Score] | None = None,
) -> list[Standing]:
    """Every candidate with its predicted and measured numbers, the one to hand over first.

    selection: scores on the selection set by candidate name; without them the best prediction leads.
    """
    selection = selection or {}
    rows = [
        _standing(problem, candidate, surrogate, history, selection.get(candidate.name)) for candidate in candidates
    ]
    dropped = {candidate.name for candidate in candidates if selection and candidate.name not in selection}
    ranked = sorted((row for row in rows if row.name not in dropped), key=_order)
    if not selection:
        return ranked
    winner = selection[ranked[0].name]
    return [_with_margin(row, selection[row.name], winner) for row in ranked]


def _order(row: Standing) -> tuple[bool, float, int]:
    measured = row.selection_kld if row.selection_kld is not None else row.predicted_kld
    return not row.eligible, float("inf") if measured is None else measured, row.size_bytes


def _standing(
    problem: SearchProblem, candidate: Candidate, surrogate: Surrogate, history: History | None, selection: Score | None
) -> Standing:
    assignment = problem.assignment_of(candidate.choices)
    predicted = None if assignment is None else float(np.exp(surrogate.predict([assignment])[0]))
    known = history.get(candidate.choices) if history is not None else None
    search = mean_and_se(known.kld_rows, 1) if known is not None else None
    fresh = mean_and_se(selection.kl_ref_mix, selection.positions) if selection is not None else None
    return Standing(
        **candidate.model_copy(update={"predicted_kld": predicted}).model_dump(),
        search_kld=search.mean if search else None,
        search_kld_se=search.se if search else None,
        selection_kld=fresh.mean if fresh else None,
        selection_kld_se=fresh.se if fresh else None,
        eligible=candidate.meets_floors and (problem.fits is None or problem.fits(candidate.choices)),
    )


def _with_margin(row: Standing, score: Score, winner: Score) -> Standing:
    if len(score.kl_ref_mix) < 2:
        return row
    difference = paired_difference(score, winner)
    interval = (difference.ci_low, difference.ci_high)
    return row.model_copy(update={"margin": difference.mean, "margin_ci95": interval})
