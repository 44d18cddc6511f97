"""The cost of scoring, in passes over the model."""

from __future__ import annotations

from collections.abc import Iterable

from exltune.engines.streaming.prefix_tree import build_tree
from exltune.measurement.plan import Batch
from exltune.schema.inventory import Inventory


def passes(inventory: Inventory, batches: Iterable[Batch], rows: int) -> float:
    """Forwards of batches in passes: a pass is every layer and the head once, on all `rows` of the search set.

    Counted as engines work: mixes of a batch share all states up to the first layer in which they differ, and the
    reference is carried in every batch.
    """
    return sum(_forwards(inventory, batch) * len(batch.rows) for batch in batches) / ((inventory.layers + 1) * rows)


def _forwards(inventory: Inventory, batch: Batch) -> int:
    """Layer and head forwards of a batch, on each of its rows."""
    tree = build_tree(batch.mixes, inventory)
    return tree.layer_forwards + len(set(tree.leaves)) + 1
