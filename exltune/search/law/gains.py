"""The gains of a mix's bits: gains by group, upgrades out of reach, and its differences from another mix."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np

from exltune.budget import SizeModel
from exltune.inventory import groups_at_level
from exltune.schema.explain import Change, Step
from exltune.schema.measurement import MeasuredGroup, Measurement, Probe
from exltune.schema.mix import REFERENCE

_MIB = 1 << 20


def steps_taken(measurement: Measurement, bits: Mapping[str, float], sizes: SizeModel | None) -> tuple[Step, ...]:
    """From the lowest measured width to the mix's, for every unit above it; the most KL(reference‖mix) per byte first.

    bits: of every group, by id. Units whose members differ, or whose width was not measured, are left out.
    """
    ladders = _ladders(measurement, bits, sizes)
    found = (ladder.step(ladder.widths[0], now) for ladder, now in ladders if now in ladder.widths)
    return _ranked(found)


def steps_beyond(
    measurement: Measurement, bits: Mapping[str, float], sizes: SizeModel | None, left_bytes: int
) -> tuple[Step, ...]:
    """From the mix's width to the next measured one, for every unit where that costs more than is left."""
    found = []
    for ladder, now in _ladders(measurement, bits, sizes):
        following = next((high for low, high in pairwise(ladder.widths) if low == now), None)
        step = None if following is None else ladder.step(now, following)
        if step is not None and step.size_bytes > left_bytes:
            found.append(step.model_copy(update={"missing_bytes": step.size_bytes - left_bytes}))
    return _ranked(found)


def changes(here: Mapping[str, float], there: Mapping[str, float], sizes: SizeModel) -> tuple[Change, ...]:
    """Groups that two mixes give different bits, in forward order; k and v, or gate and up, as one where both agree."""
    alone = {part.id: part for part in groups_at_level(sizes.inventory, 4)}
    found = []
    for pair in groups_at_level(sizes.inventory, 3):
        together = all(len({bits[member] for member in pair.members}) == 1 for bits in (here, there))
        for part in [pair] if together else [alone[member] for member in pair.members]:
            first = part.members[0]
            if here[first] != there[first]:
                now, before = (sum(sizes.group_bytes(one, bits[one]) for one in part.members) for bits in (here, there))
                found.append(
                    Change(
                        id=part.id,
                        role=str(part.role),
                        layer=part.layer,
                        bits_there=there[first],
                        bits_here=here[first],
                        size_bytes=now - before,
                    )
                )
    return tuple(found)


class _Ladder:
    """The measured widths of one unit."""

    def __init__(self, unit: MeasuredGroup, measurement: Measurement, sizes: SizeModel | None) -> None:
        self.unit, self.sizes = unit, sizes
        self.probes = {probe.bits: probe for probe in unit.probes}
        self.kld = {probe.bits: probe.kld_nats for probe in unit.probes}
        if measurement.exltune.base != REFERENCE:
            self.kld.setdefault(float(measurement.exltune.base), measurement.base_kld)
        self.widths = sorted(self.kld)

    def step(self, low: float, high: float) -> Step | None:
        """Raising the unit from one width to a higher one; None for no step, or one of unknown size."""
        before, after = self._bytes(low), self._bytes(high)
        if before is None or after is None or after <= before:
            return None
        gain = self.kld[low] - self.kld[high]
        return Step(
            id=self.unit.id,
            role=str(self.unit.role),
            layer=self.unit.layer,
            from_bits=low,
            to_bits=high,
            kld_nats=gain,
            kld_se_nats=_paired_se(self.probes.get(low), self.probes.get(high)),
            size_bytes=after - before,
            kld_per_mib=gain / (after - before) * _MIB,
        )

    def _bytes(self, bits: float) -> int | None:
        if self.sizes is not None:
            return sum(self.sizes.group_bytes(member, bits) for member in self.unit.members)
        return self.probes[bits].size_bytes if bits in self.probes else None


def _ladders(
    measurement: Measurement, bits: Mapping[str, float], sizes: SizeModel | None
) -> Iterator[tuple[_Ladder, float]]:
    """Every unit whose members agree, and their width."""
    for unit in measurement.exltune.groups:
        widths = {bits[member] for member in unit.members}
        if len(widths) == 1:
            yield _Ladder(unit, measurement, sizes), widths.pop()


def _paired_se(low: Probe | None, high: Probe | None) -> float | None:
    """Standard error of the mean difference over the same rows."""
    if low is None or high is None or len(low.kld_rows) != len(high.kld_rows) or len(low.kld_rows) < 2:
        return None
    difference = np.array(low.kld_rows) - np.array(high.kld_rows)
    return float(difference.std(ddof=1) / math.sqrt(len(difference)))


def _ranked(steps: Iterator[Step | None] | Sequence[Step]) -> tuple[Step, ...]:
    return tuple(sorted((step for step in steps if step is not None), key=lambda step: -step.kld_per_mib))
