"""exllamav3's greedy optimizer on a measurement: upgrades by KL(reference‖mix) per bit, none ever taken back."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from exltune.schema.measurement import MeasuredGroup
from exltune.search.problem.problem import SearchProblem

#: A harmless upgrade's KL change is weighed by this power, which lifts small changes over large ones.
_TWIST = 0.69


def exllamav3_greedy(problem: SearchProblem) -> dict[str, float] | None:
    """Bits by group that exllamav3's optimizer would choose within the groups' budget; None without a measurement.

    Its groups start at the lowest base quant; of all single upgrades that fit, the one with the most twisted
    KL(reference‖mix) per bit is assignment, until none lowers KL. Floors are unknown to it. Source: exllamav3
    conversion/optimize_model.py, optimize (1.6.5), on the measurement's legacy form.
    """
    if problem.measurement is None:
        return None
    units = problem.measurement.exltune.groups
    ladders = [_ladder(problem, unit) for unit in units]
    budget_bits = 8 * (problem.groups_budget_bytes - sum(ladder[0].size_bytes for ladder in ladders))
    assignment = _upgrade(ladders, budget_bits)
    return {
        member: ladder[step].bits
        for unit, ladder, step in zip(units, ladders, assignment, strict=True)
        for member in unit.members
    }


@dataclass(frozen=True)
class _Rung:
    """One width of a unit; weight: of its change of KL(reference‖mix) over the lowest width."""

    bits: float
    size_bytes: int
    weight: float


def _ladder(problem: SearchProblem, unit: MeasuredGroup) -> list[_Rung]:
    probes = sorted((probe for probe in unit.probes if probe.bits in problem.widths), key=lambda probe: probe.bits)
    return [
        _Rung(
            bits=probe.bits,
            size_bytes=sum(problem.sizes.group_bytes(member, probe.bits) for member in unit.members),
            weight=_twisted(probe.kld_nats - probes[0].kld_nats),
        )
        for probe in probes
    ]


def _twisted(change: float) -> float:
    return change if change >= 0 else -((-change) ** _TWIST)


def _upgrade(ladders: Sequence[Sequence[_Rung]], budget_bits: int) -> list[int]:
    """Index of every unit's rung. Room only shrinks: an upgrade that does not fit when it is best never will."""
    assignment = [0] * len(ladders)
    upgrades = [upgrade for unit in range(len(ladders)) for upgrade in _upgrades(ladders[unit], unit, 0)]
    heapq.heapify(upgrades)
    while upgrades:
        _, unit, target, start = heapq.heappop(upgrades)
        cost = 8 * (ladders[unit][target].size_bytes - ladders[unit][assignment[unit]].size_bytes)
        # Strictly less: so it is in exllamav3.
        if start != assignment[unit] or cost >= budget_bits:
            continue
        assignment[unit] = target
        budget_bits -= cost
        for upgrade in _upgrades(ladders[unit], unit, target):
            heapq.heappush(upgrades, upgrade)
    return assignment


def _upgrades(ladder: Sequence[_Rung], unit: int, start: int) -> list[tuple[float, int, int, int]]:
    """Upgrades that lower KL(reference‖mix) as (change by bit, unit, target, start), the least first, ties in order."""
    found = []
    for target in range(start + 1, len(ladder)):
        change = ladder[target].weight - ladder[start].weight
        bits = 8 * (ladder[target].size_bytes - ladder[start].size_bytes)
        if change < 0:
            found.append((1e10 * change / (bits + 1), unit, target, start))
    return found
