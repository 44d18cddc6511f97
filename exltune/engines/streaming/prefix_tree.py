"""Which hidden states must be computed: mixes with the same choices so far share one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from exltune.schema.inventory import Inventory
from exltune.schema.mix import REFERENCE, CacheChoice, Choice, Mix


class LayerChoice(NamedTuple):
    """The key of a layer forward: choices of its groups in the inventory's order, and the cache's."""

    weights: tuple[Choice, ...]
    cache: CacheChoice = (REFERENCE, REFERENCE)


@dataclass(frozen=True)
class Edge:
    """One layer forward: the state `parent` before the layer, with the layer's `choice`, gives state `child`."""

    parent: int
    choice: LayerChoice
    child: int


@dataclass(frozen=True)
class PrefixTree:
    """Edges of every layer, and for every mix its leaf: (state after the last layer, head choice).

    States are numbered from 0 in every layer anew; state 0 is always the reference.
    """

    layers: tuple[tuple[Edge, ...], ...]
    leaves: tuple[tuple[int, Choice], ...]

    @property
    def layer_forwards(self) -> int:
        """Layer passes over the token set, all layers together."""
        return sum(len(edges) for edges in self.layers)


def layer_groups(inventory: Inventory) -> tuple[tuple[str, ...], ...]:
    """Ids of each layer's groups."""
    return tuple(
        tuple(group.id for group in inventory.groups if group.layer == layer) for layer in range(inventory.layers)
    )


def build_tree(mixes: Sequence[Mix], inventory: Inventory) -> PrefixTree:
    """The prefix tree of mixes; the reference is carried as state 0 of every layer whether asked for or not."""
    groups = layer_groups(inventory)
    reference = {group.id: REFERENCE for group in (*inventory.groups, inventory.head)}
    carried = [Mix(name="reference", choices=reference), *mixes]
    states = [0] * len(carried)
    layers = []
    for ids in groups:
        edges: dict[tuple[int, LayerChoice], Edge] = {}
        for index, mix in enumerate(carried):
            key = (states[index], LayerChoice(tuple(mix.choices[id_] for id_ in ids), mix.cache))
            edge = edges.setdefault(key, Edge(*key, len(edges)))
            states[index] = edge.child
        layers.append(tuple(edges.values()))
    head = inventory.head.id
    leaves = [(state, mix.choices[head]) for state, mix in zip(states, carried, strict=True)]
    return PrefixTree(tuple(layers), tuple(leaves[1:]))


def needed_by_leaves(tree: PrefixTree) -> PrefixTree:
    """The tree without edges that lead to no leaf: without the reference, unless some mix shares its states."""
    needed = {state for state, _ in tree.leaves}
    layers = []
    for edges in reversed(tree.layers):
        kept = tuple(edge for edge in edges if edge.child in needed)
        needed = {edge.parent for edge in kept}
        layers.append(kept)
    return PrefixTree(tuple(reversed(layers)), tree.leaves)
