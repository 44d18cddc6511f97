"""Hidden states of all prefixes, advanced through one layer in batches that join states with the same weights."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exltune.engines.reference.prefix_tree import Edge, LayerChoice

#: A part of one edge's rows: (edge, first row, one past the last).
Segment = tuple[Edge, int, int]


@dataclass(frozen=True)
class Batch:
    """Rows that run through a layer together, all with the same weights."""

    choice: LayerChoice
    segments: tuple[Segment, ...]


class LayerStep:
    """One layer for all states: parents by number (each rows, T, hidden) give `children`.

    A parent with a single child lends it its memory: the child's rows overwrite the parent's as they are computed.
    Batches touch different rows, so they may run in any order or at once.
    """

    def __init__(self, parents: Mapping[int, Tensor], edges: Sequence[Edge]) -> None:
        self.parents, self.edges = parents, edges
        siblings = Counter(edge.parent for edge in edges)
        self.children: dict[int, Tensor] = {}
        for edge in edges:
            parent = parents[edge.parent]
            self.children[edge.child] = parent if siblings[edge.parent] == 1 else torch.empty_like(parent)

    def batches(self, batch_rows: int) -> list[Batch]:
        """All work of the layer in batches of at most `batch_rows` rows, equal choices after each other."""
        groups: defaultdict[LayerChoice, list[Edge]] = defaultdict(list)
        for edge in self.edges:
            groups[edge.choice].append(edge)
        rows = len(self.parents[0])
        return [Batch(choice, cut) for choice, edges in groups.items() for cut in cuts(edges, rows, batch_rows)]

    def run(self, batch: Batch, layer: Callable[[Tensor], Tensor]) -> int:
        """Compute a batch; layer maps (n, T, hidden) to the same shape. Returns how many edges it finished."""
        parts = [self.parents[edge.parent][start:stop] for edge, start, stop in batch.segments]
        output = layer(parts[0] if len(parts) == 1 else torch.cat(parts))
        at = finished = 0
        for edge, start, stop in batch.segments:
            child = self.children[edge.child]
            child[start:stop] = output[at : at + stop - start]
            at += stop - start
            finished += stop == len(child)
        return finished


def cuts(edges: Sequence[Edge], rows: int, batch_rows: int) -> Iterator[tuple[Segment, ...]]:
    """Cut the rows of all edges, laid end to end, into pieces of at most `batch_rows`."""
    total = len(edges) * rows
    for begin in range(0, total, batch_rows):
        end = min(begin + batch_rows, total)
        pieces = range(begin // rows, -(-end // rows))
        yield tuple((edges[n], max(begin - n * rows, 0), min(end - n * rows, rows)) for n in pieces)


def peak_states(layers: Sequence[Sequence[Edge]]) -> int:
    """The most states that are in memory at one time: a layer's children, and parents with more than one child."""
    peak = 1
    for edges in layers:
        children = Counter(edge.parent for edge in edges)
        peak = max(peak, len(edges) + sum(1 for count in children.values() if count > 1))
    return peak
