"""The knapsack against brute force."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exltune.errors import BudgetError
from exltune.search import Option, solve_knapsack

Items = dict[str, list[Option]]

_SIZES = st.integers(min_value=1, max_value=40).map(lambda n: 1024 * n)
_COSTS = st.floats(min_value=-0.5, max_value=2.0, allow_nan=False, width=32)


@st.composite
def _items(draw: st.DrawFn) -> Items:
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    return {
        f"g{i}": [Option(str(j), draw(_SIZES), draw(_COSTS)) for j in range(count)] for i, count in enumerate(counts)
    }


def _totals(items: Items, choices: dict[str, str]) -> tuple[int, float]:
    assignment = [option for name, options in items.items() for option in options if option.choice == choices[name]]
    return sum(option.size_bytes for option in assignment), sum(option.cost for option in assignment)


def _brute_force(items: Items, budget: int) -> float:
    feasible = (mix for mix in product(*items.values()) if sum(option.size_bytes for option in mix) <= budget)
    return min(sum(option.cost for option in mix) for mix in feasible)


@settings(deadline=None, max_examples=60)
@given(items=_items(), share=st.floats(0, 1))
def test_it_is_the_best_of_all_mixes(items: Items, share: float) -> None:
    low = sum(min(option.size_bytes for option in options) for options in items.values())
    high = sum(max(option.size_bytes for option in options) for options in items.values())
    budget = int(low + share * (high - low))
    size, cost = _totals(items, solve_knapsack(items, budget))
    assert size <= budget
    assert cost == pytest.approx(_brute_force(items, budget), abs=1e-8)


def test_an_exact_fit_is_taken_and_one_byte_less_is_not() -> None:
    items = {
        "a": [Option("2", 4096, 1.0), Option("3", 6144, 0.2)],
        "b": [Option("2", 4098, 1.0), Option("3", 6147, 0.1)],
    }
    assert solve_knapsack(items, 6144 + 6147) == {"a": "3", "b": "3"}
    assert solve_knapsack(items, 6144 + 6147 - 1) == {"a": "2", "b": "3"}


def test_too_small_a_budget() -> None:
    with pytest.raises(BudgetError, match="4,096"):
        solve_knapsack({"a": [Option("2", 4096, 1.0)]}, 4095)


def test_stdout_stays_clean(capfd: pytest.CaptureFixture[str]) -> None:
    # On this instance HiGHS (scipy 1.17) prints a debug line of its own.
    rng = np.random.default_rng(1)
    items: Items = {}
    for i in range(30):
        numel, scale = int(rng.integers(1, 200)) * 16384, float(np.exp(rng.normal()))
        items[f"g{i}"] = [Option(str(k), numel * k // 8 + 12 * i, scale * 4.0**-k) for k in (2, 3, 4, 5, 6, 8)]
    solve_knapsack(items, int(1.31 * sum(options[0].size_bytes for options in items.values())))
    assert capfd.readouterr() == ("", "")
