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


@dataclass(frozen=True)
class Option:
    """One way to take an item: its name, size and cost (any unit, may be negative)."""

    choice: str
    size_bytes: int
    cost: float


def solve_knapsack(items: Mapping[str, Sequence[Option]], budget_bytes: int) -> dict[str, str]:
    """The choice for every item with the least total cost whose sizes sum to at most `budget_bytes`.

    Solved exactly by HiGHS. Raises: BudgetError when not even the smallest options fit.
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
    while True:
        taken = _solve([name for name, _ in flat], [option.cost for _, option in flat], sizes, capacity)
        overshoot = sum(extra[i] for i in taken) - spare
        if overshoot <= 0:
            return {flat[i][0]: flat[i][1].choice for i in taken}
        capacity -= math.ceil(overshoot / unit)


def _solve(names: Sequence[str], costs: Sequence[float], sizes: npt.NDArray[np.float64], capacity: int) -> list[int]:
    """Indices of the options taken: one for every name, sizes within capacity."""
    count = len(names)
    rows = {name: row for row, name in enumerate(dict.fromkeys(names))}
    one_each = csr_array((np.ones(count), ([rows[name] for name in names], np.arange(count))))
    values = np.array(costs, dtype=np.float64)
    lowest = np.full(len(rows), np.inf)
    np.minimum.at(lowest, [rows[name] for name in names], values)
    values -= lowest[[rows[name] for name in names]]
    largest = float(values.max(initial=0.0))
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
