"""Hidden states of all prefixes, advanced through one layer in batches that mix states with the same weights."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from exltune.engines.reference.prefix_tree import Edge, LayerChoice

#: A part of one edge's rows: (edge, first row, one past the last).
Segment = tuple[Edge, int, int]


class StateTable:
    """States by number, each (rows, T, hidden) fp32; state 0 is the reference's.

    A parent with a single child lends it its memory: the child's rows overwrite the parent's as they are computed.
    """

    def __init__(self, embedded: Tensor) -> None:
        self.states: dict[int, Tensor] = {0: embedded}

    def advance(
        self,
        edges: Sequence[Edge],
        batch_rows: int,
        use: Callable[[LayerChoice], None],
        layer: Callable[[Tensor], Tensor],
        done: Callable[[int], None],
    ) -> None:
        """Run all edges of a layer, replacing the table's states by the children.

        use(choice) puts weights in place, layer maps (rows, T, hidden) to the same shape, done(n) reports that n
        edges are finished.
        """
        waiting = Counter(edge.parent for edge in edges)
        only_child = {parent for parent, count in waiting.items() if count == 1}
        children: dict[int, Tensor] = {}
        for choice, group in by_choice(edges).items():
            use(choice)
            for edge in group:
                parent = self.states[edge.parent]
                children[edge.child] = parent if edge.parent in only_child else torch.empty_like(parent)
            for segments in batches(group, len(self.states[group[0].parent]), batch_rows):
                self._run(segments, children, layer)
                done(sum(1 for segment in segments if segment[2] == len(children[segment[0].child])))
            for edge in group:
                waiting[edge.parent] -= 1
                if not waiting[edge.parent]:
                    del self.states[edge.parent]
        self.states = children

    def _run(self, segments: list[Segment], children: dict[int, Tensor], layer: Callable[[Tensor], Tensor]) -> None:
        parts = [self.states[edge.parent][start:stop] for edge, start, stop in segments]
        output = layer(parts[0] if len(parts) == 1 else torch.cat(parts))
        at = 0
        for edge, start, stop in segments:
            children[edge.child][start:stop] = output[at : at + stop - start]
            at += stop - start


def by_choice(edges: Sequence[Edge]) -> dict[LayerChoice, list[Edge]]:
    """Edges that take the same weights, together."""
    groups: defaultdict[LayerChoice, list[Edge]] = defaultdict(list)
    for edge in edges:
        groups[edge.choice].append(edge)
    return groups


def batches(edges: Sequence[Edge], rows: int, batch_rows: int) -> Iterator[list[Segment]]:
    """Cut the rows of all edges, laid end to end, into batches of at most `batch_rows`."""
    total = len(edges) * rows
    for begin in range(0, total, batch_rows):
        end = min(begin + batch_rows, total)
        segments = []
        for index in range(begin // rows, -(-end // rows)):
            first = index * rows
            segments.append((edges[index], max(begin - first, 0), min(end - first, rows)))
        yield segments


def peak_states(layers: Sequence[Sequence[Edge]]) -> int:
    """The most states that are in memory at one time while layers advance."""
    peak = 1
    for edges in layers:
        children = Counter(edge.parent for edge in edges)
        peak = max(peak, len(edges) + sum(1 for count in children.values() if count > 1))
    return peak
