"""What a measurement scores for its budget, and what it looks at beside swaps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

from exltune.engines.base import Engine
from exltune.errors import QuantMismatchError
from exltune.measurement import (
    Budget,
    ProbePlan,
    QuantHead,
    QuantReference,
    QuantSizes,
    plan_for,
    swap_units,
    tensor_saliency,
    uniform_mixes,
)
from exltune.schema.inventory import Inventory
from exltune.schema.measurement import TensorSaliency
from exltune.schema.mix import REFERENCE, Mix
from exltune.schema.probe import ProbedMix
from exltune.schema.provenance import ReferenceQuant
from exltune.store.probes import rows_key
from exltune.store.quants.base_quants import BaseQuant
from exltune.store.records import canonical
from exltune.store.score_cache import CachedRows

if TYPE_CHECKING:
    from torch import Tensor

#: The level at which tensors are looked at, and the rows of the search set whose inputs tell.
SALIENCY_LEVEL, _SALIENCY_ROWS = 4, 16
#: Rows that a pass is timed on.
_TIMED_ROWS = 4


def probe_plan(
    engine: Engine,
    level: int,
    quants: Sequence[QuantSizes],
    head: QuantHead,
    scores: CachedRows,
    budget: Budget,
    same: Collection[str] = (),
) -> ProbePlan:
    """The plan for a budget. Raises: UsageError.

    Where that is hours, a pass over a few rows is timed first, and what it took is kept in the store: the same command
    again, after a kill or on a busier machine, goes on with the same plan.
    """
    what = canonical([level, [quant.sha256 for quant in quants], budget.hours, rows_key(scores.row_ids)])
    seconds = partial(scores.cache.store.timing, what, partial(seconds_per_pass, engine, scores.tokens))
    bits = {quant.choice: quant.bits for quant in quants}
    return plan_for(engine.inventory, level, bits, head, len(scores), budget, seconds, same)


def quant_reference(
    found: ReferenceQuant | None,
    inventory: Inventory,
    level: int,
    quants: Sequence[BaseQuant],
    head: QuantHead,
    content: Callable[[Mix], ProbedMix],
) -> QuantReference | None:
    """What is known of a reference that is a quant, for all swaps of these. Raises: QuantMismatchError for no other."""
    if found is None:
        return None
    bits = {quant.choice: quant.bits for quant in quants}
    mixes = [mix for unit in swap_units(inventory, level, bits, head.distinct) for mix in unit.mixes]
    mixes += uniform_mixes(inventory, list(bits), REFERENCE)
    same = frozenset(mix.name for mix in mixes if not content(mix).swaps)
    if f"uniform@{quants[0].choice}" in same:
        raise QuantMismatchError(
            "it is the reference itself, and there is no base quant with fewer bits",
            where=str(quants[0].path),
            fix="Make base quants with fewer bits, or give the unquantized model as the reference",
        )
    return QuantReference(found.bits, found.head_bits, same)


def saliencies(engine: Engine, level: int, lowest: BaseQuant, tokens: Tensor) -> tuple[TensorSaliency, ...]:
    """Salience of every tensor at level 4, of none at others."""
    if level != SALIENCY_LEVEL:
        return ()
    inventory = engine.inventory
    keys = [key for group in inventory.groups for key in group.tensors]
    return tensor_saliency(inventory, engine.rfn(lowest.choice, keys), engine.capture(tokens[:_SALIENCY_ROWS], keys))


def seconds_per_pass(engine: Engine, tokens: Tensor) -> float:
    """Seconds of the reference model over all rows, from a few of them; its weights are at hand by then."""
    groups = (*engine.inventory.groups, engine.inventory.head)
    reference = Mix(name="reference", choices={group.id: REFERENCE for group in groups})
    engine.score([reference], tokens[:1])
    timed = tokens[:_TIMED_ROWS]
    began = perf_counter()
    engine.score([reference], timed)
    return (perf_counter() - began) * len(tokens) / len(timed)
