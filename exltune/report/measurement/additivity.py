"""Sum of parts against whole mixes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from exltune.schema.inventory import Role
from exltune.schema.measurement import Measurement
from exltune.schema.mix import REFERENCE, Choice
from exltune.schema.recipe import Recipe
from exltune.schema.report import ReportGroup, WholeMix


@dataclass(frozen=True)
class Parts:
    """The cost of every single part of a mix: as probed, else by the law of the swaps.

    mix_law: unit id -> choice -> nats/token, by the law over whole mixes, with its gamma.
    """

    measurement: Measurement
    groups: Sequence[ReportGroup]
    mix_law: Mapping[str, Mapping[Choice, float]]
    gamma: float | None

    def whole(
        self, name: str, source: str, choices: Mapping[str, Choice], kld: float, se: float | None
    ) -> WholeMix | None:
        """A scored mix beside the sum of its parts; None where a part's cost is known neither way."""
        detail, costs, in_mixes, by_law = self.measurement.exltune, [], [], 0
        base_kld = 0.0 if detail.base == REFERENCE else self.measurement.base_kld
        for unit in (*detail.groups, *detail.wider):
            taken = {choices.get(member, REFERENCE) for member in unit.members}
            choice = taken.pop()
            if taken:
                return None
            if choice in (REFERENCE, detail.base):
                continue
            probed = {probe.choice: probe.kld_nats for probe in unit.probes}
            part = probed.get(choice, self._by_law.get((unit.id, choice)))
            if part is None:
                return None
            costs.append(part - base_kld)
            in_mixes.append(self.mix_law.get(unit.id, {}).get(choice, part))
            by_law += choice not in probed
        return WholeMix(
            name=name,
            source=source,
            measured_kld=kld,
            measured_kld_se=se,
            sum_of_parts=base_kld + sum(costs),
            by_gamma=None if self.gamma is None else _by_gamma(costs, self.gamma),
            by_law=None if self.gamma is None else _by_gamma(in_mixes, self.gamma),
            parts_by_law=by_law,
        )

    @cached_property
    def _by_law(self) -> dict[tuple[str, Choice], float]:
        bits = {probe.choice: probe.bits for group in self.groups for probe in group.probes}
        return {
            (group.id, choice): group.law_klds[width]
            for group in self.groups
            for choice, width in bits.items()
            if width in group.law_klds
        }


def uniform_mixes(parts: Parts) -> tuple[WholeMix, ...]:
    """The base quants that the measurement scored whole."""
    detail = parts.measurement.exltune
    members = [member for group in detail.groups for member in group.members]
    found = []
    for row in detail.mixes:
        choices = dict.fromkeys(members, row.name.rpartition("@")[2]) | {Role.HEAD.value: detail.head_choice}
        if row.kl_ref_quant is not None:
            found.append(parts.whole(row.name, "uniform", choices, row.kl_ref_quant, row.kl_ref_quant_se))
    return tuple(mix for mix in found if mix is not None)


def scored_mixes(parts: Parts, recipe: Recipe | None) -> tuple[tuple[WholeMix, ...], tuple[str, ...]]:
    """The standings of the recipe's search, and the reasons why mixes are not shown."""
    if recipe is None:
        return (), ()
    detail = recipe.exltune
    if detail is None or detail.search is None:
        return (), ("The recipe records no scored mixes: it is not from a search of exltune optimize",)
    ours, theirs = parts.measurement.exltune.provenance, detail.provenance
    if ours.tokens_sha256 != theirs.tokens_sha256:
        return (), ("The recipe's mixes were scored on other tokens than the measurement, so they are not shown",)
    scored = [(one, one.search_kld) for one in detail.search.standings if one.search_kld is not None]
    found = [parts.whole(one.name, "search", one.choices, kld, one.search_kld_se) for one, kld in scored]
    shown = tuple(mix for mix in found if mix is not None)
    lost = len(found) - len(shown)
    notes = (f"{lost} of the recipe's mixes have parts that were not measured, and are not shown",) if lost else ()
    return shown, notes if scored else ("The recipe's search scored no mix",)


def _by_gamma(costs: Sequence[float], gamma: float) -> float:
    """KL(reference‖mix) is the sum of error energies to the power gamma: exltune/search/law/surrogate.py."""
    return float(sum(max(cost, 0.0) ** (1 / gamma) for cost in costs) ** gamma)
