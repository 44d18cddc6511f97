"""The default plan: a few swaps on some of the rows, the law of swaps for all others."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from exltune.errors import UsageError
from exltune.measurement.cost import passes
from exltune.measurement.exhaustive import ExhaustivePlan
from exltune.measurement.plan import Batch
from exltune.measurement.probes import SwapUnit, swap_units, uniform_mixes
from exltune.measurement.summary import QuantHead
from exltune.schema.inventory import Inventory
from exltune.schema.mix import Choice, Mix
from exltune.schema.score import Score

#: Fewer rows than these say little about rows.
LEAST_ROWS = 8

#: Bits above the lowest quant at which swaps tell the smooth part of KL from that of the routers, and the bits at which
#: the cache is probed: near the usual choices.
_BITS_ABOVE, _CACHE_BITS = 2.0, 4.0
#: Every so many units are swapped there.
_EVERY = 2


@dataclass(frozen=True)
class FewSwapsPlan:
    """Every part at the lowest quant, every second part two bits above it, head and cache once; each on the first rows.

    The uniform mixes of the lowest quants come with them. The rest follows from SwapLaw. With passes to
    spare all rows are used, then further widths are swapped.
    """

    batches: tuple[Batch, ...]

    @classmethod
    def of(
        cls,
        inventory: Inventory,
        level: int,
        quants: Mapping[Choice, float],
        head: QuantHead,
        rows: int,
        budget: float,
        same: Collection[str] = (),
    ) -> FewSwapsPlan:
        """The plan of a model for a budget in passes over all `rows`; quants: bits of all base quants, ascending; same:
        names of mixes that are the reference.

        Raises: UsageError where the budget does not even pay for few rows.
        """
        units = swap_units(inventory, level, quants, head.distinct, same)
        uniforms = _uniforms(inventory, quants, head, same)
        swaps = _first_swaps(units)
        used = min(math.floor(budget / _cost(inventory, units, swaps, uniforms, 1, rows) + 1e-9), rows)
        if used < min(LEAST_ROWS, rows):
            least = least_budget(inventory, level, quants, head, rows, same)
            raise UsageError(
                f"{budget:g} passes pay for {used} of the {min(LEAST_ROWS, rows)} rows that a measurement needs",
                fix=f"Give `budget` {math.ceil(10 * least) / 10:g} or more",
            )
        if used == rows:
            _add_columns(inventory, units, swaps, uniforms, rows, budget)
        return cls(tuple(_batches(units, swaps, uniforms, used)))

    def next(self, scores: Mapping[str, Score]) -> Sequence[Batch]:
        """As ProbePlan.next."""
        return ExhaustivePlan(self.batches).next(scores)


#: Choices that are swapped, by unit.
Swaps = dict[str, set[Choice]]


def least_budget(
    inventory: Inventory,
    level: int,
    quants: Mapping[Choice, float],
    head: QuantHead,
    rows: int,
    same: Collection[str] = (),
) -> float:
    """The fewest passes that a plan can do with."""
    units, uniforms = (
        swap_units(inventory, level, quants, head.distinct, same),
        _uniforms(inventory, quants, head, same),
    )
    return _cost(inventory, units, _first_swaps(units), uniforms, min(LEAST_ROWS, rows), rows)


def _uniforms(
    inventory: Inventory, quants: Mapping[Choice, float], head: QuantHead, same: Collection[str]
) -> tuple[Mix, ...]:
    """The lowest base quants, up to two bits above the lowest, whole; half rates tell nothing more."""
    lowest = next(iter(quants.values()))
    near = [choice for choice, bits in quants.items() if (bits - lowest) in (0.0, 1.0, _BITS_ABOVE)]
    return tuple(mix for mix in uniform_mixes(inventory, near, head.choice) if mix.name not in same)


def _first_swaps(units: Sequence[SwapUnit]) -> Swaps:
    """The fewest swaps that the law needs."""
    twice = _probed_twice(units)
    swaps: Swaps = {}
    for unit in units:
        if unit.of_cache:
            swaps[unit.id] = {_nearest(unit, _CACHE_BITS)}
        else:
            swaps[unit.id] = {unit.choices[0]}
            if unit.id in twice:
                swaps[unit.id].add(_nearest(unit, unit.bits[0] + _BITS_ABOVE))
    return swaps


def _probed_twice(units: Sequence[SwapUnit]) -> set[str]:
    """Every second layer's of each kind of part, one kind in the even layers and the next in the odd ones."""
    kinds: dict[str, list[str]] = {}
    for unit in units:
        if unit.layer is not None:
            kinds.setdefault(unit.id.partition(".")[2], []).append(unit.id)
    return {one for first, ids in enumerate(kinds.values()) for one in ids[first % _EVERY :: _EVERY]}


def _nearest(unit: SwapUnit, bits: float) -> Choice:
    return min(zip(unit.choices, unit.bits, strict=True), key=lambda pair: abs(pair[1] - bits))[0]


def _add_columns(
    inventory: Inventory, units: Sequence[SwapUnit], swaps: Swaps, uniforms: tuple[Mix, ...], rows: int, budget: float
) -> None:
    """Swap further: all parts two bits above the lowest, then width after width from below, while it can be paid."""
    parts = [unit for unit in units if unit.layer is not None]
    columns = [{unit.id: {_nearest(unit, unit.bits[0] + _BITS_ABOVE)} for unit in parts}]
    widths = dict.fromkeys(choice for unit in parts for choice in unit.choices)
    columns += [{unit.id: {width} & set(unit.choices) for unit in parts} for width in widths]
    columns += [{unit.id: set(unit.choices) for unit in units if unit.layer is None}]
    for column in columns:
        wider = {key: chosen | column.get(key, set()) for key, chosen in swaps.items()}
        if _cost(inventory, units, wider, uniforms, rows, rows) > budget:
            return
        swaps.update(wider)


def _cost(
    inventory: Inventory, units: Sequence[SwapUnit], swaps: Swaps, uniforms: tuple[Mix, ...], used: int, rows: int
) -> float:
    return passes(inventory, _batches(units, swaps, uniforms, used), rows)


def _batches(units: Sequence[SwapUnit], swaps: Swaps, uniforms: tuple[Mix, ...], used: int) -> list[Batch]:
    """The uniform mixes, then a batch for each layer, then head and cache."""
    layers: dict[int | None, list[Mix]] = {}
    for unit in units:
        chosen = [mix for choice, mix in zip(unit.choices, unit.mixes, strict=True) if choice in swaps[unit.id]]
        layers.setdefault(unit.layer, []).extend(chosen)
    return [Batch(tuple(mixes), range(used)) for mixes in (uniforms, *layers.values())]
