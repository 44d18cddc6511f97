"""Bits by layer and role, as rows and columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from exltune.schema.explain import GroupBits
from exltune.schema.inventory import Role

_ORDER = {role.value: place for place, role in enumerate(Role)}

#: Bits of every role in one layer; None where the layer has no such group.
Row = tuple[float | None, ...]


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
