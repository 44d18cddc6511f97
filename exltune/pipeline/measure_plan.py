"""What a measurement scores for its budget, and what it looks at beside swaps."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

from torch import Tensor

from exltune.engines.base import Engine
from exltune.measure import Budget, ProbePlan, QuantHead, plan_for, tensor_salience
from exltune.pipeline.base_quants import BaseQuant
from exltune.schema.measurement import TensorSalience
from exltune.schema.mix import REFERENCE, Mix

#: The level at which tensors are looked at, and the rows of the search set whose inputs tell.
SALIENCE_LEVEL, _SALIENCE_ROWS = 4, 16
#: Rows that a pass is timed on.
_TIMED_ROWS = 4


def probe_plan(
    engine: Engine, level: int, quants: Sequence[BaseQuant], head: QuantHead, tokens: Tensor, budget: Budget
) -> ProbePlan:
    """The plan for a budget; where that is hours, a pass over a few rows is timed first. Raises: UsageError."""
    bits = {quant.choice: quant.bits for quant in quants}
    return plan_for(engine.inventory, level, bits, head, len(tokens), budget, lambda: _seconds_per_pass(engine, tokens))


def saliences(engine: Engine, level: int, lowest: BaseQuant, tokens: Tensor) -> tuple[TensorSalience, ...]:
    """Salience of every tensor at level 4, of none at others."""
    if level != SALIENCE_LEVEL:
        return ()
    inventory = engine.inventory
    keys = [key for group in inventory.groups for key in group.tensors]
    return tensor_salience(inventory, engine.rfn(lowest.choice, keys), engine.capture(tokens[:_SALIENCE_ROWS], keys))


def _seconds_per_pass(engine: Engine, tokens: Tensor) -> float:
    """Seconds of the reference model over all rows, from a few of them; its weights are at hand by then."""
    groups = (*engine.inventory.groups, engine.inventory.head)
    reference = Mix(name="reference", choices={group.id: REFERENCE for group in groups})
    engine.score([reference], tokens[:1])
    timed = tokens[:_TIMED_ROWS]
    began = perf_counter()
    engine.score([reference], timed)
    return (perf_counter() - began) * len(tokens) / len(timed)
