"""The prefix tree and the batching of states, against plain recomputation."""

from __future__ import annotations

import random

import pytest
import torch

from exltune.engines.streaming.prefix_tree import Edge, LayerChoice, build_tree, layer_groups
from exltune.engines.streaming.states import LayerStep, peak_states
from exltune.inventory import inventory_from_config
from exltune.schema.mix import CACHE_K, CACHE_V, REFERENCE, Mix
from exltune.testing.tiny_models import CONFIGS

INVENTORY = inventory_from_config(CONFIGS["glm4moe"])
IDS = [group.id for group in (*INVENTORY.groups, INVENTORY.head)]


def random_mixes(count: int) -> list[Mix]:
    draw = random.Random(3)
    return [Mix(name=str(n), choices={id_: draw.choice(["2", REFERENCE]) for id_ in IDS}) for n in range(count)]


def prefixes(mix: Mix) -> list[tuple[str, ...]]:
    """Choices up to and with each layer."""
    taken: tuple[str, ...] = ()
    found = []
    for groups in layer_groups(INVENTORY):
        taken += tuple(mix.choices[id_] for id_ in groups)
        found.append(taken)
    return found


def test_layers_hold_all_groups_in_order() -> None:
    assert sum(layer_groups(INVENTORY), ()) == tuple(group.id for group in INVENTORY.groups)


def test_one_edge_for_each_distinct_prefix() -> None:
    mixes = random_mixes(40)
    tree = build_tree(mixes, INVENTORY)
    reference = Mix(name="ref", choices=dict.fromkeys(IDS, REFERENCE))
    for layer, edges in enumerate(tree.layers):
        distinct = {prefixes(mix)[layer] for mix in (*mixes, reference)}
        assert len(edges) == len(distinct)
        assert edges[0] == Edge(0, LayerChoice((REFERENCE,) * len(edges[0].choice.weights)), 0)
        assert [edge.child for edge in edges] == list(range(len(edges)))
    assert tree.layer_forwards == sum(map(len, tree.layers))


def test_leaves_tell_mixes_apart_and_only_those() -> None:
    mixes = random_mixes(40)
    mixes.append(mixes[7])
    leaves = build_tree(mixes, INVENTORY).leaves
    for a, leaf_a in zip(mixes, leaves, strict=True):
        for b, leaf_b in zip(mixes, leaves, strict=True):
            assert (leaf_a == leaf_b) == (a.choices == b.choices)


def test_the_cache_is_part_of_every_layers_choice() -> None:
    plain = dict.fromkeys(IDS, REFERENCE)
    caches = [{CACHE_K: "4"}, {CACHE_V: "4"}, {CACHE_K: "4", CACHE_V: "4"}, {CACHE_V: "4", CACHE_K: REFERENCE}]
    tree = build_tree([Mix(name="", choices=plain | cache) for cache in caches], INVENTORY)
    expected = [(REFERENCE, REFERENCE), ("4", REFERENCE), (REFERENCE, "4"), ("4", "4")]
    for edges in tree.layers:
        assert [edge.choice.cache for edge in edges] == expected
    assert [state for state, _ in tree.leaves] == [1, 2, 3, 2]


def test_an_unquantized_cache_is_the_same_as_none() -> None:
    plain = dict.fromkeys(IDS, "2")
    mixes = [Mix(name="", choices=plain | cache) for cache in ({}, {CACHE_K: "16"}, {CACHE_K: "16", CACHE_V: "16"})]
    tree = build_tree(mixes, INVENTORY)
    assert {len(edges) for edges in tree.layers} == {2}
    assert len(set(tree.leaves)) == 1


@pytest.mark.parametrize("batch_rows", [1, 2, 3, 4, 5, 100])
def test_batches_cover_every_row_once_and_join_no_states(batch_rows: int) -> None:
    edges = [Edge(0, LayerChoice(("2",) if child == 1 else ()), child) for child in range(3)]
    found = LayerStep({0: torch.ones(4, 2, 1)}, edges).batches(batch_rows)
    rows = [(batch.edge.child, row) for batch in found for row in range(batch.start, batch.stop)]
    assert rows == [(child, row) for child in (0, 2, 1) for row in range(4)]
    assert all(batch.stop - batch.start <= batch_rows and batch.start % batch_rows == 0 for batch in found)


@pytest.mark.parametrize("batch_rows", [1, 3, 100])
def test_states_follow_their_own_choices_in_any_order(batch_rows: int) -> None:
    mixes = random_mixes(12)
    tree = build_tree(mixes, INVENTORY)
    draw = random.Random(4)
    states = {0: torch.ones(4, 2, 1)}
    finished = 0
    for edges in tree.layers:
        step = LayerStep(states, edges)
        work = step.batches(batch_rows)
        for batch in draw.sample(work, len(work)):
            factor = 2.0 ** batch.edge.choice.weights.count("2")
            finished += step.run(batch, lambda hidden, factor=factor: hidden * factor)
        states = step.children
    assert finished == tree.layer_forwards
    for mix, (state, _) in zip(mixes, tree.leaves, strict=True):
        swapped = sum(mix.choices[group.id] == "2" for group in INVENTORY.groups)
        assert states[state].unique().tolist() == [2.0**swapped]


def test_peak_counts_parents_that_outlive_a_child() -> None:
    two, three = LayerChoice(("2",)), LayerChoice(("3",))
    fork = [Edge(0, two, 0), Edge(0, three, 1)]
    chain = [Edge(0, two, 0), Edge(1, two, 1)]
    assert peak_states([fork, chain]) == 3
    assert peak_states([chain]) == 2
    assert peak_states([]) == 1
