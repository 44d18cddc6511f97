"""How all methods stand at one size, and which mix is handed over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from exltune.metrics import mean_and_se, paired_difference
from exltune.schema.baseline import Seed
from exltune.schema.score import Score
from exltune.schema.search import Standing
from exltune.search import History, SearchProblem, Surrogate

#: Begin of the names of the search's own mixes.
SEARCHED = "search"


def all_candidates(problem: SearchProblem, seeds: Sequence[Seed], finalists: Mapping[str, Sequence[int]]) -> list[Seed]:
    """Seeds and the search's finalists, each mix once under its first name; a seed's name comes before a finalist's."""
    offered = [*seeds, *(problem.seed_of_units(name, taken) for name, taken in finalists.items())]
    distinct = {tuple(sorted(seed.mix.choices.items())): seed for seed in reversed(offered)}
    return [seed for seed in offered if distinct[tuple(sorted(seed.mix.choices.items()))] is seed]


def standings(
    problem: SearchProblem,
    candidates: Sequence[Seed],
    surrogate: Surrogate,
    history: History | None = None,
    selection: Mapping[str, Score] | None = None,
) -> list[Standing]:
    """Every candidate with what is predicted and measured of it, the one to hand over first.

    selection: scores on the selection set by candidate name; without them the best prediction leads.
    """
    selection = selection or {}
    rows = [_standing(problem, seed, surrogate, history, selection.get(seed.name)) for seed in candidates]
    dropped = {seed.name for seed in candidates if selection and seed.name not in selection}
    ranked = sorted((row for row in rows if row.name not in dropped), key=_order)
    if not selection:
        return ranked
    winner = selection[ranked[0].name]
    return [_with_margin(row, selection[row.name], winner) for row in ranked]


def _order(row: Standing) -> tuple[bool, float, int]:
    measured = row.selection_kld if row.selection_kld is not None else row.predicted_kld
    return not row.eligible, float("inf") if measured is None else measured, row.size_bytes


def _standing(
    problem: SearchProblem, seed: Seed, surrogate: Surrogate, history: History | None, selection: Score | None
) -> Standing:
    taken = problem.taken_of(seed.mix.choices)
    predicted = None if taken is None else float(np.exp(surrogate.predict([taken])[0]))
    known = history.get(seed.mix.choices) if history is not None else None
    search = mean_and_se(known.kld_rows, 1) if known is not None else None
    fresh = mean_and_se(selection.kl_ref_mix, selection.positions) if selection is not None else None
    return Standing(
        name=seed.name,
        choices=seed.mix.choices,
        size_bytes=seed.size.size_bytes,
        bpw=seed.size.bpw,
        predicted_kld=predicted,
        search_kld=search.mean if search else None,
        search_kld_se=search.se if search else None,
        selection_kld=fresh.mean if fresh else None,
        selection_kld_se=fresh.se if fresh else None,
        eligible=seed.meets_floors and (problem.fits is None or problem.fits(seed.mix.choices)),
    )


def _with_margin(row: Standing, score: Score, winner: Score) -> Standing:
    if len(score.kl_ref_mix) < 2:
        return row
    difference = paired_difference(score, winner)
    interval = (difference.ci_low, difference.ci_high)
    return row.model_copy(update={"margin": difference.mean, "margin_ci95": interval})
