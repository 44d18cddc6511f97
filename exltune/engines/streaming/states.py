"""Hidden states of all prefixes, advanced through one layer in batches of rows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exltune.engines.streaming.prefix_tree import Edge, LayerChoice


@dataclass(frozen=True)
class Batch:
    """Rows [start, stop) of one edge, which run through the layer together.

    Rows of different edges never do: a mix's score must not depend on the mixes beside it, to the last bit.
    """

    edge: Edge
    start: int
    stop: int


class LayerStep:
    """One layer for all states: parents by number (each rows, T, hidden) give `children`.

    A parent with a single child lends it its memory: the child's rows overwrite the parent's as they are computed.
    Batches touch different rows, so they may run in any order or at once. empty_like: where other children's memory
    comes from.
    """

    def __init__(
        self,
        parents: Mapping[int, Tensor],
        edges: Sequence[Edge],
        empty_like: Callable[[Tensor], Tensor] = torch.empty_like,
    ) -> None:
        self.parents, self.edges = parents, edges
        siblings = Counter(edge.parent for edge in edges)
        self.children: dict[int, Tensor] = {}
        for edge in edges:
            parent = parents[edge.parent]
            self.children[edge.child] = parent if siblings[edge.parent] == 1 else empty_like(parent)

    def batches(self, batch_rows: int) -> list[Batch]:
        """All work of the layer in batches of at most `batch_rows` rows, equal choices after each other."""
        groups: defaultdict[LayerChoice, list[Edge]] = defaultdict(list)
        for edge in self.edges:
            groups[edge.choice].append(edge)
        rows = len(next(iter(self.parents.values())))
        starts = range(0, rows, batch_rows)
        return [
            Batch(edge, start, min(start + batch_rows, rows))
            for edges in groups.values()
            for edge in edges
            for start in starts
        ]

    def run(self, batch: Batch, layer: Callable[[Tensor], Tensor]) -> int:
        """Compute a batch; layer maps (n, T, hidden) to the same shape. Returns how many edges it finished."""
        rows = slice(batch.start, batch.stop)
        child = self.children[batch.edge.child]
        child[rows] = layer(self.parents[batch.edge.parent][rows])
        return int(batch.stop == len(child))

    @property
    def held_bytes(self) -> int:
        """Memory of all states that are held while the layer runs."""
        distinct = {state.data_ptr(): state.nbytes for state in (*self.parents.values(), *self.children.values())}
        return sum(distinct.values())


def peak_states(layers: Sequence[Sequence[Edge]]) -> int:
    """The most states that are in memory at one time: a layer's children, and parents with more than one child."""
    peak = 1
    for edges in layers:
        children = Counter(edge.parent for edge in edges)
        peak = max(peak, len(edges) + sum(1 for count in children.values() if count > 1))
    return peak
