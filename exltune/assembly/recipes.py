"""From a recipe, globs and all, to the bits of every linear."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping

from exltune.errors import RecipeError
from exltune.schema.inventory import Group, Inventory, Role
from exltune.schema.mix import UNQUANTIZED_BITS
from exltune.schema.recipe import Recipe

_GLOB = frozenset("*?[")
_EXPERTS = (Role.EXPERTS_GATE_UP, Role.EXPERTS_DOWN)
_BESIDE_DOWN = {
    Role.MLP_DOWN: (Role.MLP_GATE, Role.MLP_UP),
    Role.SHARED_DOWN: (Role.SHARED_GATE, Role.SHARED_UP),
}


def resolve_recipe(recipe: Recipe, inventory: Inventory) -> dict[str, float]:
    """Bits of every linear of the groups, head excluded; the last matching entry wins, as in exllamav3.

    Raises: RecipeError for an entry that matches nothing, a linear without bits, and experts that differ or a `down`
    that stays unquantized alone, of which exllamav3 would convert a model that it cannot load.
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
    _check_plain_down(inventory, bits)
    return {key: bits[key] for key in keys}


def _check_plain_down(inventory: Inventory, bits: Mapping[str, float]) -> None:
    """Source: exllamav3 1.6.5, modules/mlp.py GatedMLP.load_local: its graph for few tokens takes no other down."""
    widths: dict[tuple[int | None, Role], float] = {
        (spec.layer, spec.role): bits[spec.key] for spec in inventory.linears if spec.key in bits
    }
    for spec in inventory.linears:
        beside = [widths.get((spec.layer, role), UNQUANTIZED_BITS) for role in _BESIDE_DOWN.get(spec.role, ())]
        if beside and bits[spec.key] == UNQUANTIZED_BITS and UNQUANTIZED_BITS not in beside:
            raise RecipeError(
                f"{spec.key} stays unquantized beside quantized gate and up, and exllamav3 cannot load such a layer",
                fix="Give it bits too, or leave gate or up at 16 as well",
            )


def _check_experts(group: Group, bits: dict[str, float]) -> None:
    widths = sorted({bits[key] for key in group.tensors})
    if group.role in _EXPERTS and len(widths) > 1:
        listed = " and ".join(f"{width:g}" for width in widths)
        raise RecipeError(
            f"the experts of group {group.id} have {listed} bits, and exllamav3 loads only one width for all of them",
            fix="Give all experts of a layer the same bits in gate and up, and the same in down",
        )
