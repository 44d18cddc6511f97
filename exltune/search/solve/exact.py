"""The exact optimum of a surrogate at a budget, whole or near a mix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from exltune.errors import BudgetError
from exltune.search.problem.problem import SearchProblem
from exltune.search.solve.knapsack import Option, solve_knapsack

Floats = npt.NDArray[np.float64]

#: Options of every unit that a solution may take, by index.
Allowed = Sequence[Iterable[int]]


def solve(problem: SearchProblem, energies: Sequence[Floats], allowed: Allowed | None = None) -> tuple[int, ...] | None:
    """Index of every unit's option with the least summed energy within the budget; None where nothing allowed fits."""
    items = {}
    for number, unit in enumerate(problem.units):
        indices = range(len(unit.options)) if allowed is None else allowed[number]
        items[str(number)] = [
            Option(str(i), unit.options[i].size_bytes, float(energies[number][i])) for i in sorted(indices)
        ]
    try:
        chosen = solve_knapsack(items, problem.budget_bytes)
    except BudgetError:
        return None
    return tuple(int(chosen[str(number)]) for number in range(len(problem.units)))


def exchanges(
    problem: SearchProblem, energies: Sequence[Floats], assignment: Sequence[int], rng: np.random.Generator, tries: int
) -> list[tuple[int, ...]]:
    """Neighbours of a mix: one unit a step up or down, the others paying or gaining by at most a step each.

    At most `tries` units are moved, in random order; the best neighbours by energy come first.
    """
    moves = [
        (number, index + step)
        for number, (unit, index) in enumerate(zip(problem.units, assignment, strict=True))
        for step in (-1, 1)
        if 0 <= index + step < len(unit.options)
    ]
    near = [
        range(max(index - 1, 0), min(index + 2, len(unit.options)))
        for unit, index in zip(problem.units, assignment, strict=True)
    ]
    found: dict[tuple[int, ...], float] = {}
    for move in rng.permutation(len(moves))[:tries]:
        number, option = moves[move]
        neighbour = solve(problem, energies, [*near[:number], [option], *near[number + 1 :]])
        if neighbour is not None:
            found[neighbour] = sum(float(energies[i][k]) for i, k in enumerate(neighbour))
    return sorted(found, key=lambda neighbour: found[neighbour])
