"""Bits by layer and role, as rows and columns."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import groupby

from exltune.schema.explain import GroupBits
from exltune.schema.inventory import PAIRS, Role

_ORDER = {name: place for place, role in reversed(list(enumerate(Role))) for name in (role.value, role.pair)}

#: Bits of every role in one layer; None where the layer has no such group.
Row = tuple[float | None, ...]


def cells(groups: Sequence[GroupBits], measured_alone: Collection[str] = ()) -> tuple[GroupBits, ...]:
    """Groups as cells: k and v, or gate and up, in one where their bits agree in all layers and nobody told them apart.

    measured_alone: ids of groups that were swapped each on its own.
    """
    pairs: dict[tuple[int | None, str], list[GroupBits]] = {}
    for group in groups:
        pairs.setdefault((group.layer, PAIRS.get(group.role, group.role)), []).append(group)
    apart = {
        role
        for (_, role), some in pairs.items()
        if len({one.bits for one in some}) > 1 or (len(some) > 1 and some[0].id in measured_alone)
    }
    found: list[GroupBits] = []
    for (layer, role), some in pairs.items():
        found += some if len(some) == 1 or role in apart else [_one(layer, role, some)]
    return tuple(found)


def _one(layer: int | None, role: str, some: Sequence[GroupBits]) -> GroupBits:
    sizes = [one.size_bytes for one in some if one.size_bytes is not None]
    total = sum(sizes) if len(sizes) == len(some) else None
    return GroupBits(id=f"{layer}.{role}", role=role, layer=layer, bits=some[0].bits, size_bytes=total)


def heat_map(groups: Sequence[GroupBits]) -> tuple[tuple[str, ...], dict[int, Row]]:
    """Roles in the model's order, and for every layer its bits by role."""
    roles = tuple(sorted({group.role for group in groups}, key=lambda role: (_ORDER.get(role, len(_ORDER)), role)))
    bits = {(group.layer or 0, group.role): group.bits for group in groups}
    return roles, {
        layer: tuple(bits.get((layer, role)) for role in roles) for layer in sorted({key[0] for key in bits})
    }


def folded(rows: dict[int, Row]) -> list[tuple[str, Row]]:
    """Neighbouring layers with the same bits as one row: `3-17`."""
    return [(layer_ranges(layer for layer, _ in same), row) for row, same in _runs(rows)]


def layer_ranges(layers: Iterable[int | None]) -> str:
    """0, 1, 2, 5 -> `0-2, 5`."""
    ordered = sorted(layer for layer in layers if layer is not None)
    runs = [[layer for _, layer in run] for _, run in groupby(enumerate(ordered), key=lambda item: item[1] - item[0])]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _runs(rows: dict[int, Row]) -> list[tuple[Row, list[tuple[int, Row]]]]:
    return [(row, list(same)) for row, same in groupby(rows.items(), key=lambda item: item[1])]
