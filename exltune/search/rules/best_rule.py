"""The best hand rule at a recipe's size, and the recipe's differences from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from exltune.budget import SizeModel
from exltune.exl3.codebooks import Codebook
from exltune.schema.explain import Change, RuleComparison
from exltune.schema.heuristics import Heuristics
from exltune.schema.measurement import Measurement
from exltune.schema.mix import REFERENCE
from exltune.schema.recipe import Recipe
from exltune.schema.search import SearchDetail, Standing
from exltune.search.law.costs import measured_costs
from exltune.search.law.gains import changes
from exltune.search.problem.problem import search_problem
from exltune.search.rules.rules import rules_mix

#: Evidence to judge a rule by, the best first: field of a standing and its name.
_EVIDENCE = (("selection_kld", "selection"), ("search_kld", "search"), ("predicted_kld", "predicted"))


def best_rule(
    bits: Mapping[str, float],
    recipe: Recipe,
    rules: Sequence[Heuristics],
    sizes: SizeModel | None,
    measurement: Measurement | None,
) -> RuleComparison | None:
    """The recipe beside the best of the hand rules.

    Their standings in the recipe's search decide; without a search each rule is filled up to the recipe's bytes, and
    the measurement predicts which one is best. None without a model, or with neither.
    """
    if sizes is None:
        return None
    search = recipe.exltune.search if recipe.exltune is not None else None
    if search is not None:
        return _of_search(bits, search, {one.name for one in rules}, sizes)
    return None if measurement is None else _predicted(bits, rules, sizes, measurement)


def _of_search(
    bits: Mapping[str, float], search: SearchDetail, names: set[str], sizes: SizeModel
) -> RuleComparison | None:
    rivals = [row for row in search.standings if row.name in names]
    ours = next((row for row in search.standings if row.name == search.outcome), None)
    for field, judged_by in _EVIDENCE:
        scored = [(kld, row) for row in rivals if (kld := _kld(row, field)) is not None]
        if scored:
            kld, best = min(scored, key=lambda pair: pair[0])
            there = {group.id: float(best.choices[group.id]) for group in sizes.inventory.groups}
            here = None if ours is None else _kld(ours, field)
            return _comparison(best.name, judged_by, kld, here, changes(bits, there, sizes))
    return None


def _predicted(
    bits: Mapping[str, float], rules: Sequence[Heuristics], sizes: SizeModel, measurement: Measurement
) -> RuleComparison | None:
    """The rule with the least sum of measured single costs at the recipe's bytes; None where none has such a sum."""
    detail = measurement.exltune
    widths = {probe.bits for unit in detail.groups for probe in unit.probes}
    widths |= set() if detail.base == REFERENCE else {float(detail.base)}
    used = sum(sizes.group_bytes(group, width) for group, width in bits.items())
    low, high = (sum(sizes.group_bytes(group, width) for group in bits) for width in (min(widths), max(widths)))
    problem = search_problem(
        sizes.inventory,
        # Widths that were not measured may take the recipe beyond the size of any measured mix.
        target_bpw=sizes.bpw_of(min(max(used, low), high)),
        widths=widths,
        codebook=cast(Codebook, detail.codebook),
        head_choice=detail.head_choice,
        head_bits=detail.head_bits,
    )
    costs = measured_costs(measurement, sorted(widths))
    mixes = {one.name: rules_mix(problem, one) for one in rules}
    predicted = {name: kld for name, mix in mixes.items() if (kld := costs.predict(mix)) is not None}
    if not predicted:
        return None
    best = min(predicted, key=lambda name: predicted[name])
    here = costs.predict(bits) if set(bits.values()) <= widths else None
    return _comparison(best, "predicted", predicted[best], here, changes(bits, mixes[best], sizes))


def _kld(row: Standing, field: str) -> float | None:
    found = getattr(row, field)
    return None if found is None else float(found)


def _comparison(
    name: str, judged_by: str, kld_there: float | None, kld_here: float | None, changed: tuple[Change, ...]
) -> RuleComparison:
    return RuleComparison(
        name=name,
        judged_by=judged_by,
        kld_there=kld_there,
        kld_here=kld_here,
        bytes_added=sum(max(change.size_bytes, 0) for change in changed),
        bytes_saved=sum(max(-change.size_bytes, 0) for change in changed),
        changes=changed,
    )
