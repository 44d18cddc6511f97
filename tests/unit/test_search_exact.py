"""The exact optimum over units and their neighbours, against brute force; and what a budget is over wider units."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exltune.errors import BudgetError, UsageError
from exltune.inventory import inventory_from_config
from exltune.schema.mix import CACHE_K, CACHE_V
from exltune.search import SearchProblem, cache_unit, head_unit, search_problem, solve
from exltune.search.solve.exact import exchanges
from exltune.testing.laws import measured, random_law

_WIDTHS = (2.0, 2.5, 4.0)
_SMALL = inventory_from_config(
    {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "vocab_size": 256,
    }
)


def _problem(target: float, *, wider: bool = False, floors: dict[str, float] | None = None) -> SearchProblem:
    """Five groups at three widths, one of them a half integer; with `wider` head and cache are open too."""
    plain = search_problem(
        _SMALL,
        target_bpw=target,
        widths=_WIDTHS,
        codebook="mul1",
        head_choice="4",
        head_bits=4.0,
        measurement=measured(random_law(_SMALL), _SMALL, widths=_WIDTHS),
        floors=floors,
        extras={CACHE_K: "4", CACHE_V: "4"} if wider else None,
    )
    if not wider:
        return plain
    head = head_unit(plain.sizes, {4.0: "4", 6.0: "2.5"})
    caches = [cache_unit(key, {2: 500, 4: 2500, 8: 9000}) for key in (CACHE_K, CACHE_V)]
    return replace(plain, wider=(head, *caches))


def _best(problem: SearchProblem, energies: list[np.ndarray]) -> float:
    """Least energy of all mixes within the budget."""
    found = float("inf")
    for assignment in product(*(range(len(unit.options)) for unit in problem.units)):
        if sum(unit.options[i].size_bytes for unit, i in zip(problem.units, assignment, strict=True)) <= _budget(
            problem
        ):
            found = min(found, _energy(energies, assignment))
    return found


def _budget(problem: SearchProblem) -> int:
    """Bytes of a target: the groups' budget, and what the default head and cache take."""
    wider = {"head": "4", CACHE_K: "4", CACHE_V: "4"}
    defaults = [
        option.size_bytes for unit in problem.wider for option in unit.options if option.choice == wider[unit.id]
    ]
    return problem.groups_budget_bytes + sum(defaults)


def _energy(energies: list[np.ndarray], assignment: tuple[int, ...]) -> float:
    return sum(float(z[i]) for z, i in zip(energies, assignment, strict=True))


def _random_energies(problem: SearchProblem, seed: int) -> list[np.ndarray]:
    """Falling with bits, as a law's are."""
    rng = np.random.default_rng(seed)
    return [np.sort(np.exp(2 * rng.standard_normal(len(unit.options))))[::-1] for unit in problem.units]


@settings(deadline=None, max_examples=20)
@given(target=st.floats(2.3, 4.0), seed=st.integers(0, 1000), wider=st.booleans(), floor=st.booleans())
def test_no_mix_within_the_budget_is_better(target: float, seed: int, wider: bool, floor: bool) -> None:
    floors = {"0.mlp.down": 2.5} if floor else {}
    try:
        problem = _problem(target, wider=wider, floors=floors)
    except BudgetError:
        assert floor
        assert target < 2.5
        return
    energies = _random_energies(problem, seed)
    assignment = solve(problem, energies)
    assert assignment is not None
    assert problem.within(assignment)
    assert _energy(energies, assignment) == pytest.approx(_best(problem, energies), rel=1e-9)
    bits = problem.candidate_of("", assignment).mix.choices
    assert not floor or float(bits["0.mlp.down"]) >= 2.5


def test_what_is_not_allowed_is_not_taken() -> None:
    problem = _problem(3.0)
    energies = _random_energies(problem, 0)
    assert solve(problem, energies, [[0]] * len(problem.units)) == (0,) * len(problem.units)
    assert solve(problem, energies, [[2]] * len(problem.units)) is None


@pytest.mark.parametrize("wider", [False, True])
def test_neighbours_are_a_step_away_and_within_the_budget(wider: bool) -> None:
    problem = _problem(3.0, wider=wider)
    energies = _random_energies(problem, 1)
    incumbent = solve(problem, energies)
    assert incumbent is not None
    found = exchanges(problem, energies, incumbent, np.random.default_rng(0), 100)
    assert incumbent not in found
    assert len(found) == len(set(found)) > len(problem.units) // 2
    for assignment in found:
        assert problem.bytes_of(assignment) <= _budget(problem)
        assert max(abs(a - b) for a, b in zip(assignment, incumbent, strict=True)) == 1
    values = [_energy(energies, assignment) for assignment in found]
    assert values == sorted(values)
    assert min(values) >= _energy(energies, incumbent)


def test_every_neighbour_is_the_best_one_with_its_move() -> None:
    problem = _problem(3.0)
    energies = _random_energies(problem, 1)
    incumbent = solve(problem, energies)
    assert incumbent is not None
    near = [
        assignment
        for assignment in product(range(3), repeat=len(incumbent))
        if _near(assignment, incumbent) and problem.within(assignment)
    ]
    best = {
        (number, option): min(_energy(energies, assignment) for assignment in near if assignment[number] == option)
        for number in range(len(incumbent))
        for option in range(3)
        if abs(option - incumbent[number]) == 1 and any(assignment[number] == option for assignment in near)
    }
    found = exchanges(problem, energies, incumbent, np.random.default_rng(0), 100)
    assert {round(_energy(energies, assignment), 9) for assignment in found} == {
        round(value, 9) for value in best.values()
    }


def _near(assignment: tuple[int, ...], incumbent: tuple[int, ...]) -> bool:
    return all(abs(a - b) <= 1 for a, b in zip(assignment, incumbent, strict=True))


def test_within_asks_whether_it_fits() -> None:
    problem = _problem(3.0)
    lowest = (0,) * len(problem.units)
    assert problem.within(lowest)
    seen: list[dict[str, str]] = []
    picky = replace(problem, fits=lambda choices: bool(seen.append(dict(choices))) or choices["0.attn.q"] != "2")
    assert not picky.within(lowest)
    assert seen[0]["0.attn.q"] == "2"
    assert picky.within((1, *lowest[1:]))
    # What is over the budget is not asked about.
    assert not picky.within((2,) * len(problem.units))
    assert len(seen) == 2


def test_floors_that_do_not_fit_name_the_smallest_bpw() -> None:
    with pytest.raises(BudgetError, match=r"smallest mix that keeps them has (\d\.\d+) bpw") as error:
        _problem(2.4, floors={"0.mlp.down": 4.0, "0.mlp.gate+up": 4.0})
    smallest = float(str(error.value).split(" has ")[1].split(" bpw")[0])
    floors = {"0.mlp.down": 4.0, "0.mlp.gate+up": 4.0}
    assert _problem(smallest + 0.001, floors=floors).floors == floors
    with pytest.raises(BudgetError):
        _problem(smallest - 0.001, floors=floors)
    with pytest.raises(UsageError, match=r"floor of 0.mlp.down is 5 bits, the highest base quant has 4"):
        _problem(3.0, floors={"0.mlp.down": 5.0})


def test_a_cache_whose_bytes_fall_with_bits_is_refused() -> None:
    with pytest.raises(UsageError, match="more bits cannot take fewer bytes"):
        cache_unit(CACHE_K, {2: 10, 4: 5})
