"""The exact multiple-choice knapsack: one choice for every item, least cost within a budget."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from exltune.errors import BudgetError

#: HiGHS stops at an absolute gap of 1e-6: costs are scaled so that this is far below any difference that counts.
_COST_SCALE = 1e4
#: Bisections of the price on bytes, and how much rounding may blur its bound, of the bound itself.
_PRICE_STEPS, _BOUND_TOLERANCE = 64, 1e-9

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Option:
    """One way to take an item: its name, size and cost (any unit, may be negative)."""

    choice: str
    size_bytes: int
    cost: float


def solve_knapsack(items: Mapping[str, Sequence[Option]], budget_bytes: int) -> dict[str, str]:
    """The choice for every item with the least total cost whose sizes sum to at most `budget_bytes`.

    Solved exactly: options that no optimum can take are dropped, HiGHS decides among the rest. Raises: BudgetError
    when not even the smallest options fit.
    """
    smallest = {name: min(option.size_bytes for option in options) for name, options in items.items()}
    spare = budget_bytes - sum(smallest.values())
    if spare < 0:
        raise BudgetError(f"the smallest choices take {sum(smallest.values()):,} bytes, the budget is {budget_bytes:,}")
    flat = [(name, option) for name, options in items.items() for option in options]
    extra = [option.size_bytes - smallest[name] for name, option in flat]
    # In units of their common divisor sizes are small integers, which the solver's tolerances cannot blur.
    unit = math.gcd(*extra) or 1
    sizes, capacity = np.array([size // unit for size in extra], dtype=np.float64), spare // unit
    costs = np.array([option.cost for _, option in flat])
    rows = np.repeat(np.arange(len(items)), [len(options) for options in items.values()])
    while True:
        kept = _promising(costs, sizes, rows, capacity)
        assignment = [int(kept[i]) for i in _solve(costs[kept], sizes[kept], rows[kept], capacity)]
        overshoot = sum(extra[i] for i in assignment) - spare
        if overshoot <= 0:
            return {flat[i][0]: flat[i][1].choice for i in assignment}
        capacity -= math.ceil(overshoot / unit)


def _promising(costs: Floats, sizes: Floats, rows: Ints, capacity: int) -> Ints:
    """Indices of the options that an optimum may take.

    With a price on bytes every item has a cheapest option, and their sum less the worth of the capacity bounds every
    mix from below; an option that raises this bound above a mix at hand is in no better one. rows: item of each
    option, ascending.
    """
    starts = np.flatnonzero(np.r_[True, rows[1:] != rows[:-1]])
    costs = costs - np.minimum.reduceat(costs, starts)[rows]
    dear, cheap = float(costs.max()) + 1.0, 0.0
    for _ in range(_PRICE_STEPS):
        price = 0.5 * (dear + cheap)
        fits = sizes[_cheapest(costs + price * sizes, rows, starts)].sum() <= capacity
        dear, cheap = (price, cheap) if fits else (dear, price)
    priced = costs + dear * sizes
    least = np.minimum.reduceat(priced, starts)
    mix = _filled(_cheapest(priced, rows, starts), costs, sizes, rows, capacity)
    bound = least.sum() - dear * capacity + (priced - least[rows])
    return np.flatnonzero(bound <= costs[mix].sum() + _BOUND_TOLERANCE * (1.0 + least.sum()))


def _cheapest(priced: Floats, rows: Ints, starts: Ints) -> Ints:
    """Index of every item's cheapest option."""
    order = np.lexsort((priced, rows))
    return order[starts]


def _filled(mix: Ints, costs: Floats, sizes: Floats, rows: Ints, capacity: int) -> Ints:
    """A mix that fits, its leftover bytes spent on whatever gains most."""
    mix = mix.copy()
    while True:
        gain, extra = costs[mix][rows] - costs, sizes - sizes[mix][rows]
        gain[extra > capacity - sizes[mix].sum()] = 0.0
        best = int(np.argmax(gain))
        if gain[best] <= 0.0:
            return mix
        mix[rows[best]] = best


def _solve(costs: Floats, sizes: Floats, rows: Ints, capacity: int) -> list[int]:
    """Indices of the options assignment: one for every item, sizes within capacity. rows: item of each option."""
    count, items = len(costs), int(rows[-1]) + 1
    lowest = np.full(items, np.inf)
    np.minimum.at(lowest, rows, costs)
    values = costs - lowest[rows]
    largest = float(values.max(initial=0.0))
    if count == items:
        return list(range(count))
    one_each = csr_array((np.ones(count), (rows, np.arange(count))))
    with _stdout_muted():
        result = milp(
            values * (_COST_SCALE / largest if largest > 0 else 1.0),
            integrality=np.ones(count, dtype=np.int64),
            bounds=Bounds(0, 1),
            constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(sizes[None, :], -np.inf, float(capacity))],
            options={"mip_rel_gap": 0.0},
        )
    if result.x is None:
        raise BudgetError(f"the solver found no choice within the budget: {result.message}")
    return [i for i, share in enumerate(result.x) if share > 0.5]


@contextmanager
def _stdout_muted() -> Iterator[None]:
    """Send file descriptor 1 to nowhere: HiGHS leaves a debug line in C's stdout, which would spoil `--json`."""
    flush = ctypes.CDLL(None).fflush
    flush(None)
    saved = os.dup(1)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        flush(None)
        os.dup2(saved, 1)
        os.close(saved)
