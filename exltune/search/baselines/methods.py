"""Baselines: the proposals of every method at a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from exltune.schema.candidate import Candidate
from exltune.schema.heuristics import Heuristics
from exltune.search.baselines.greedy import exllamav3_greedy
from exltune.search.baselines.strategy import strategy_within
from exltune.search.law.costs import CostTable, fitted_costs, measured_costs, nmse
from exltune.search.problem.problem import SearchProblem
from exltune.search.rules.rules import rules_mix
from exltune.search.solve.knapsack import Option, solve_knapsack

#: A method: a mix within the problem's budget, or None where it has none (no measurement, nothing small enough).
Baseline = Callable[[SearchProblem], Candidate | None]

#: Share of all measured cost that is told apart by the codec's own error where measurements tie.
_PRIOR_SHARE = 1e-3


def uniform(problem: SearchProblem) -> Candidate | None:
    """The plain base quant with the most bits within the budget."""
    for width in reversed(problem.widths):
        bits = dict.fromkeys(problem.group_ids, width)
        if problem.groups_bytes(bits) <= problem.groups_budget_bytes:
            return problem.candidate("uniform", bits)
    return None


def strategy(problem: SearchProblem, hq: int = 0) -> Candidate | None:
    """exllamav3's own strategy, plain or hq, at its largest quant within the budget."""
    bits = strategy_within(problem.sizes, problem.groups_budget_bytes, problem.widths, hq)
    return None if bits is None else problem.candidate("exllamav3-hq" if hq else "exllamav3-strategy", bits)


def greedy(problem: SearchProblem) -> Candidate | None:
    """exllamav3's optimizer on our measurement."""
    bits = exllamav3_greedy(problem)
    return None if bits is None else problem.candidate("exllamav3-greedy", bits)


def hand_rules(problem: SearchProblem, rules: Heuristics) -> Candidate | None:
    """A file of hand rules, filled up to the budget."""
    return problem.candidate(rules.name, rules_mix(problem, rules))


def knapsack(problem: SearchProblem) -> Candidate | None:
    """The least sum of measured single costs."""
    if problem.measurement is None:
        return None
    return _best_sum(problem, "knapsack", measured_costs(problem.measurement, problem.widths))


def knapsack_fit(problem: SearchProblem) -> Candidate | None:
    """The least sum of costs by the fitted law, which is smoother than single measurements."""
    if problem.measurement is None:
        return None
    return _best_sum(problem, "knapsack-fit", fitted_costs(problem.measurement, problem.widths))


def convex(problem: SearchProblem) -> Candidate | None:
    """The least sum of S * rfn(K)^2, S from the swap to the lowest width alone.

    Source: the allocation by recipe of exllamav3 1.6's conversion, with measured in place of estimated sensitivities.
    """
    if problem.measurement is None:
        return None
    costs = {}
    for unit in problem.measurement.exltune.groups:
        lowest = min(unit.probes, key=lambda probe: probe.bits)
        scale = max(lowest.kld_nats, 0.0) / float(nmse(lowest.bits))
        costs[unit.id] = {width: scale * float(nmse(width)) for width in problem.widths}
    return _best_sum(problem, "convex", CostTable(0.0, problem.measurement.exltune.groups, costs))


#: Every method but the hand rules, by baseline name; a deeper search is one more row.
BASELINES: Mapping[str, Baseline] = {
    "uniform": uniform,
    "exllamav3-strategy": strategy,
    "exllamav3-hq": partial(strategy, hq=1),
    "exllamav3-greedy": greedy,
    "convex": convex,
    "knapsack": knapsack,
    "knapsack-fit": knapsack_fit,
}


def baseline_mixes(problem: SearchProblem, rules: Sequence[Heuristics] = ()) -> tuple[Candidate, ...]:
    """The baselines of all methods and rule files; every one is within the budget.

    With a measurement each carries its predicted KL(reference‖mix), a sum of single swaps.
    """
    table = None if problem.measurement is None else measured_costs(problem.measurement, problem.widths)
    found = [proposer(problem) for proposer in BASELINES.values()]
    found += [hand_rules(problem, one) for one in rules]
    return tuple(_with_prediction(baseline, table) for baseline in found if baseline is not None)


def _best_sum(problem: SearchProblem, name: str, table: CostTable) -> Candidate:
    tie_break = _PRIOR_SHARE * (sum(max(costs[problem.widths[0]], 0.0) for costs in table.costs.values()) or 1.0)
    numel = sum(unit.numel for unit in table.units)
    items = {}
    for unit in problem.group_units:
        share = tie_break * unit.numel / numel
        items[unit.id] = [
            Option(
                choice=option.choice,
                size_bytes=option.size_bytes,
                cost=table.costs[unit.id][option.bits] + share * float(nmse(option.bits) / nmse(problem.widths[0])),
            )
            for option in unit.options
        ]
    chosen = solve_knapsack(items, problem.groups_budget_bytes)
    bits = {member: float(chosen[unit.id]) for unit in table.units for member in unit.members}
    return problem.candidate(name, bits).model_copy(update={"predicted_kld": table.predict(bits)})


def _with_prediction(baseline: Candidate, table: CostTable | None) -> Candidate:
    if table is None or baseline.predicted_kld is not None:
        return baseline
    bits = {member: float(baseline.choices[member]) for unit in table.units for member in unit.members}
    return baseline.model_copy(update={"predicted_kld": table.predict(bits)})
