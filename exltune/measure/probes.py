"""The mixes of a measurement: each swaps one part of the reference model to one base quant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from exltune.inventory import groups_at_level
from exltune.schema.inventory import Inventory, Part
from exltune.schema.mix import CACHE_CHOICES, CACHE_K, CACHE_V, REFERENCE, Choice, Mix


def probe_name(part: str, choice: Choice) -> str:
    """Name of the mix that swaps a part to a choice."""
    return f"{part}@{choice}"


def probe_batches(inventory: Inventory, level: int, choices: Sequence[Choice]) -> Iterator[list[Mix]]:
    """Swaps on the reference, a batch for each layer: they share all hidden states up to it.

    level: 2 for parts of a layer, 3 for groups.
    """
    by_layer: dict[int | None, list[Part]] = {}
    for part in groups_at_level(inventory, level):
        by_layer.setdefault(part.layer, []).append(part)
    for parts in by_layer.values():
        yield [_swap(inventory, part.members, choice, part.id) for part in parts for choice in choices]


def wider_probes(inventory: Inventory, heads: Mapping[Choice, float]) -> list[Mix]:
    """Swaps of what is beyond the groups: the head to every bit width that there is, the KV cache's k and v to theirs.

    heads: a base quant for every bit width of the head.
    """
    head = [_swap(inventory, (inventory.head.id,), choice) for choice in heads]
    quantized = [choice for choice in CACHE_CHOICES if choice != REFERENCE]
    return head + [_swap(inventory, (key,), choice) for key in (CACHE_K, CACHE_V) for choice in quantized]


def uniform_mixes(inventory: Inventory, choices: Sequence[Choice], head_choice: Choice) -> list[Mix]:
    """The base quants themselves, whole."""
    groups = [group.id for group in inventory.groups]
    head = {inventory.head.id: head_choice}
    return [Mix(name=f"uniform@{choice}", choices=dict.fromkeys(groups, choice) | head) for choice in choices]


def _swap(inventory: Inventory, members: Sequence[str], choice: Choice, name: str | None = None) -> Mix:
    everything = dict.fromkeys((*(group.id for group in inventory.groups), inventory.head.id), REFERENCE)
    return Mix(name=probe_name(name or members[0], choice), choices=everything | dict.fromkeys(members, choice))
