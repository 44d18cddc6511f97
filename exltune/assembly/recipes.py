"""From a recipe, globs and all, to the bits of every linear."""

from __future__ import annotations

import fnmatch

from exltune.errors import RecipeError
from exltune.schema.inventory import Group, Inventory, Role
from exltune.schema.recipe import Recipe

_GLOB = frozenset("*?[")
_EXPERTS = (Role.EXPERTS_GATE_UP, Role.EXPERTS_DOWN)


def resolve_recipe(recipe: Recipe, inventory: Inventory) -> dict[str, float]:
    """Bits of every linear of the groups, head excluded; the last matching entry wins, as in exllamav3.

    Raises: RecipeError for an entry that matches nothing, a linear without bits, or experts that differ, of which
    exllamav3 would convert a model that it cannot load.
    Source: exllamav3 1.6.5, conversion/allocation.py, create_q_strategy_from_recipe.
    """
    keys = [key for group in inventory.groups for key in group.tensors]
    known = set(keys)
    bits: dict[str, float] = {}
    for pattern, value in recipe.tensors.items():
        matched = fnmatch.filter(keys, pattern) if _GLOB & set(pattern) else list(known & {pattern})
        if not matched:
            raise RecipeError(
                f"the key {pattern!r} matches no quantizable linear of this {inventory.architecture}",
                fix="Remove it, or check the recipe against `exltune inspect`; the head takes head_bits",
            )
        bits |= dict.fromkeys(matched, value)
    missing = [key for key in keys if key not in bits]
    if missing:
        raise RecipeError(
            f"{len(missing)} linears have no bits, among them {', '.join(missing[:3])}",
            fix="Add them, or a glob that covers them",
        )
    for group in inventory.groups:
        _check_experts(group, bits)
    return {key: bits[key] for key in keys}


def _check_experts(group: Group, bits: dict[str, float]) -> None:
    widths = sorted({bits[key] for key in group.tensors})
    if group.role in _EXPERTS and len(widths) > 1:
        listed = " and ".join(f"{width:g}" for width in widths)
        raise RecipeError(
            f"the experts of group {group.id} have {listed} bits, and exllamav3 loads only one width for all of them",
            fix="Give all experts of a layer the same bits in gate and up, and the same in down",
        )
