"""Hand rules as hard floors: the fewest bits that every group may take."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from exltune.errors import UsageError
from exltune.schema.heuristics import Heuristics
from exltune.schema.inventory import Inventory
from exltune.schema.mix import UNQUANTIZED_BITS
from exltune.search.rules.wishes import Bound, Wish, check_bounds, name_rule, wishes


def floors(rules: Sequence[Heuristics], inventory: Inventory, widths: Sequence[float]) -> dict[str, float]:
    """The fewest bits of every group for which some rule sets a floor, as one of `widths`.

    A rule's floor is its `bits` or `min_bits`, and its `extra_bits` above the lowest width; each is rounded up to a
    width that exists. 16 (unquantized) and extra bits end at the highest width. `max_bits` is not a floor, but holds
    back extra bits. Of several files the highest floor counts. Whether floors fit a budget is the problem's to check.
    Raises: UsageError naming two rules that contradict each other, or a floor above the highest width.
    """
    available = sorted(widths)
    wanted = [wishes(one, inventory) for one in rules]
    found: dict[str, float] = {}
    for group in inventory.groups:
        asked = [(one, wish[group.id]) for one, wish in zip(rules, wanted, strict=True)]
        least = _floor(group.id, asked, available)
        if least > available[0]:
            found[group.id] = least
    return found


def _floor(group: str, asked: Sequence[tuple[Heuristics, Wish]], widths: Sequence[float]) -> float:
    lower = [_bound(rules, wish, bits, name) for rules, wish in asked for bits, name in wish.lower()]
    upper = [_bound(rules, wish, bits, name) for rules, wish in asked for bits, name in wish.upper()]
    check_bounds(group, lower, upper)
    highest = max(lower, key=lambda bound: bound.bits, default=None)
    if highest is not None and widths[-1] < highest.bits < UNQUANTIZED_BITS:
        raise UsageError(
            f"the floor of {highest.rule} is above the highest base quant, {widths[-1]:g} bits",
            fix=f"Quantize {highest.bits:g} bits too (`bits` of exltune quantize), or lower the rule",
        )
    cap = min((bound.bits for bound in upper), default=UNQUANTIZED_BITS)
    extra = max(wish.values.get("extra_bits", 0.0) for _, wish in asked) if asked else 0.0
    wanted = max(min(widths[0] + extra, cap), highest.bits if highest is not None else 0.0)
    return widths[min(bisect_left(widths, wanted), len(widths) - 1)]


def _bound(rules: Heuristics, wish: Wish, bits: float, name: str) -> Bound:
    return Bound(bits, name_rule(rules, wish.rules[name], name))
