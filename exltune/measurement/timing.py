"""The time of a pass on this machine."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from exltune.engines.base import Engine
from exltune.schema.mix import REFERENCE, Mix

if TYPE_CHECKING:
    from torch import Tensor

#: Rows that a pass is timed on.
_TIMED_ROWS = 4


def seconds_per_pass(engine: Engine, tokens: Tensor) -> float:
    """Seconds of the reference model over all rows (rows, T), from a few of them; its weights are at hand by then."""
    groups = (*engine.inventory.groups, engine.inventory.head)
    reference = Mix(name="reference", choices={group.id: REFERENCE for group in groups})
    engine.score([reference], tokens[:1])
    timed = tokens[:_TIMED_ROWS]
    began = perf_counter()
    engine.score([reference], timed)
    return (perf_counter() - began) * len(tokens) / len(timed)
