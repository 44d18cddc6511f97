"""A reference that is a quant itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from exltune.errors import QuantMismatchError
from exltune.measurement.probes import swap_units, uniform_mixes
from exltune.schema.inventory import Inventory
from exltune.schema.mix import REFERENCE, Choice, Mix
from exltune.schema.probe import ProbedMix
from exltune.schema.provenance import ReferenceQuant


@dataclass(frozen=True)
class QuantReference:
    """bits, head_bits: of its weights. same: names of mixes that put into a part, or into all groups, what is there
    already: their KL(reference‖mix) is 0 by definition, and they are not scored.
    """

    bits: float
    head_bits: float
    same: frozenset[str]


def quant_reference(
    found: ReferenceQuant,
    inventory: Inventory,
    level: int,
    bits: Mapping[Choice, float],
    heads: Mapping[Choice, float],
    content: Callable[[Mix], ProbedMix],
    lowest: Path,
) -> QuantReference:
    """The reference for all swaps of base quants.

    bits, heads: of the base quants by choice, ascending, and of the heads that are swapped. lowest: directory of the
    base quant with the fewest bits. Raises: QuantMismatchError where that is the reference itself.
    """
    mixes = [mix for unit in swap_units(inventory, level, bits, heads) for mix in unit.mixes]
    mixes += uniform_mixes(inventory, list(bits), REFERENCE)
    same = frozenset(mix.name for mix in mixes if not content(mix).swaps)
    if f"uniform@{next(iter(bits))}" in same:
        raise QuantMismatchError(
            "it is the reference itself, and there is no base quant with fewer bits",
            where=str(lowest),
            fix="Make base quants with fewer bits, or give the unquantized model as the reference",
        )
    return QuantReference(found.bits, found.head_bits, same)
