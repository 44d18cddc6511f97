"""The mixes of a measurement: each swaps one part of the reference model to one base quant."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from exltune.inventory import cache_half, groups_at_level
from exltune.schema.inventory import Inventory, Role, Unit
from exltune.schema.mix import CACHE_CHOICES, CACHE_K, CACHE_V, REFERENCE, Choice, Mix


class SwapUnit(Unit):
    """A unit that is swapped alone.

    bits: of every choice, ascending. mixes: the swap to every choice. routers: how many of the model's routers see the
    error of such a swap.
    """

    choices: tuple[Choice, ...]
    bits: tuple[float, ...]
    mixes: tuple[Mix, ...]
    routers: int

    @property
    def of_cache(self) -> bool:
        """Whether it is half of the KV cache, whose error is not the codec's."""
        return self.id in (CACHE_K, CACHE_V)

    @property
    def of_head(self) -> bool:
        """Whether it is the head."""
        return self.layer is None and not self.of_cache

    def without(self, same: Collection[str]) -> SwapUnit:
        """The unit with no swaps of these names."""
        kept = [place for place, mix in enumerate(self.mixes) if mix.name not in same]
        if len(kept) == len(self.mixes):
            return self
        return self.model_copy(
            update={
                "choices": tuple(self.choices[place] for place in kept),
                "bits": tuple(self.bits[place] for place in kept),
                "mixes": tuple(self.mixes[place] for place in kept),
            }
        )


def swap_units(
    inventory: Inventory,
    level: int,
    quants: Mapping[Choice, float],
    heads: Mapping[Choice, float],
    same: Collection[str] = (),
) -> tuple[SwapUnit, ...]:
    """All parts at a level, then head and cache. quants, heads: bits of every choice, ascending.

    same: names of swaps that change nothing, as QuantReference has them; a unit is without them, or not there.
    """
    units = [_swapped(inventory, unit, quants) for unit in groups_at_level(inventory, level)]
    units.append(_swapped(inventory, inventory.head.alone, heads))
    cache = {choice: float(choice) for choice in CACHE_CHOICES if choice != REFERENCE}
    units += [_swapped(inventory, cache_half(key), cache) for key in (CACHE_K, CACHE_V)]
    return tuple(found for unit in units if (found := unit.without(same)).mixes)


def probe_name(part: str, choice: Choice) -> str:
    """Name of the mix that swaps a part to a choice."""
    return f"{part}@{choice}"


def probe_batches(inventory: Inventory, level: int, choices: Sequence[Choice]) -> Iterator[list[Mix]]:
    """Swaps on the reference, a batch for each layer: they share all hidden states up to it."""
    by_layer: dict[int | None, list[Unit]] = {}
    for part in groups_at_level(inventory, level):
        by_layer.setdefault(part.layer, []).append(part)
    for parts in by_layer.values():
        yield [_swap(inventory, part, choice) for part in parts for choice in choices]


def wider_probes(inventory: Inventory, heads: Mapping[Choice, float]) -> list[Mix]:
    """Swaps of the parts beyond the groups: the head to every bit width at hand, the KV cache's k and v to theirs.

    heads: a base quant for every bit width of the head.
    """
    return [mix for unit in swap_units(inventory, 3, {}, heads) if unit.layer is None for mix in unit.mixes]


def uniform_mixes(inventory: Inventory, choices: Sequence[Choice], head_choice: Choice) -> list[Mix]:
    """The base quants themselves, whole."""
    groups = [group.id for group in inventory.groups]
    head = {inventory.head.id: head_choice}
    return [Mix(name=f"uniform@{choice}", choices=dict.fromkeys(groups, choice) | head) for choice in choices]


def _swapped(inventory: Inventory, unit: Unit, bits: Mapping[Choice, float]) -> SwapUnit:
    return SwapUnit(
        **unit.as_fields,
        choices=tuple(bits),
        bits=tuple(bits.values()),
        mixes=tuple(_swap(inventory, unit, choice) for choice in bits),
        routers=0 if unit.id == inventory.head.id else _routers_after(inventory, unit.members),
    )


def _routers_after(inventory: Inventory, members: Sequence[str]) -> int:
    """Routers behind the first of the members: a layer's own stands between its attention and its experts."""
    routed = {spec.layer or 0 for spec in inventory.linears if spec.role is Role.ROUTER}
    places = [(group.layer or 0, group.role.part != "attn") for group in inventory.groups if group.id in set(members)]
    layer, behind = min(places, default=(0, False))
    return sum(place > layer or (place == layer and not behind) for place in routed)


def _swap(inventory: Inventory, unit: Unit, choice: Choice) -> Mix:
    everything = dict.fromkeys((*(group.id for group in inventory.groups), inventory.head.id), REFERENCE)
    return Mix(name=probe_name(unit.id, choice), choices=everything | dict.fromkeys(unit.members, choice))
