"""The mixes of a measurement: each swaps one part of the reference model to one base quant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from exltune.inventory import groups_at_level
from exltune.schema.inventory import Inventory, Part
from exltune.schema.mix import REFERENCE, Choice, Mix


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
        yield [_swap(inventory, part, choice) for part in parts for choice in choices]


def uniform_mixes(inventory: Inventory, choices: Sequence[Choice], head_choice: Choice) -> list[Mix]:
    """The base quants themselves, whole."""
    groups = [group.id for group in inventory.groups]
    head = {inventory.head.id: head_choice}
    return [Mix(name=f"uniform@{choice}", choices=dict.fromkeys(groups, choice) | head) for choice in choices]


def _swap(inventory: Inventory, part: Part, choice: Choice) -> Mix:
    everything = dict.fromkeys((*(group.id for group in inventory.groups), inventory.head.id), REFERENCE)
    return Mix(name=probe_name(part.id, choice), choices=everything | dict.fromkeys(part.members, choice))
