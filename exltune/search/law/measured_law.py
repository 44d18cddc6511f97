"""The law over a measurement alone: from its swaps and its whole mixes, without the model at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from exltune.errors import UsageError
from exltune.schema.inventory import Role
from exltune.schema.measurement import MeasuredGroup, Measurement
from exltune.schema.mix import REFERENCE, Choice
from exltune.search.law.surrogate import Surrogate
from exltune.search.problem.problem import SearchUnit, UnitOption


@dataclass(frozen=True)
class MeasuredUnits:
    """The measured groups and the head as units, each with every width that the measurement has; sizes unknown (0)."""

    measurement: Measurement

    @cached_property
    def units(self) -> tuple[SearchUnit, ...]:
        """Groups in forward order, then the head where it was swapped."""
        detail = self.measurement.exltune
        widths = _choices(detail.groups)
        heads = [unit for unit in detail.wider if unit.role == Role.HEAD and unit.probes]
        return tuple(_unit(group, widths) for group in detail.groups) + tuple(
            _unit(head, _choices(heads)) for head in heads
        )

    @cached_property
    def group_ids(self) -> tuple[str, ...]:
        """Keys that a mix has for the groups."""
        return tuple(member for group in self.measurement.exltune.groups for member in group.members)

    @property
    def extras(self) -> Mapping[str, Choice]:
        """The cache is none of these units."""
        return {}

    def assignment_of(self, choices: Mapping[str, Choice]) -> tuple[int, ...] | None:
        """Index of every unit's option in a mix; None where members differ or a choice is not an option here."""
        assignment = []
        for unit in self.units:
            wanted = {choices.get(member) for member in unit.members}
            found = [index for index, option in enumerate(unit.options) if {option.choice} == wanted]
            if not found:
                return None
            assignment.append(found[0])
        return tuple(assignment)


def measured_law(measurement: Measurement) -> tuple[MeasuredUnits, Surrogate]:
    """The law fitted to a measurement's swaps and uniform mixes.

    Raises: UsageError for swaps on anything but the reference, and for a group without any.
    """
    if measurement.exltune.base != REFERENCE:
        raise UsageError(
            f"the law is of swaps on the reference, and these are on the base quant {measurement.exltune.base}",
            fix="Measure again",
        )
    units = MeasuredUnits(measurement)
    return units, Surrogate(units)


def _choices(groups: list[MeasuredGroup] | tuple[MeasuredGroup, ...]) -> dict[Choice, float]:
    """Choice -> bits, ascending in bits."""
    found = {probe.choice: probe.bits for group in groups for probe in group.probes}
    return dict(sorted(found.items(), key=lambda entry: entry[1]))


def _unit(group: MeasuredGroup, widths: Mapping[Choice, float]) -> SearchUnit:
    options = tuple(UnitOption(bits=bits, choice=choice, size_bytes=0) for choice, bits in widths.items())
    return SearchUnit(**group.as_fields, options=options)
