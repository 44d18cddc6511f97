"""The wishes of a file of hand rules for every group of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from exltune.errors import UsageError
from exltune.schema.heuristics import Heuristics, Match
from exltune.schema.inventory import Group, Inventory, Role

_ROUTED = (Role.EXPERTS_GATE_UP, Role.EXPERTS_DOWN)
_LOWER, _UPPER = ("bits", "min_bits"), ("bits", "max_bits")


@dataclass(frozen=True)
class Wish:
    """The rules' wishes for one group (schema/heuristics.py), and the index of the rule behind each field."""

    values: Mapping[str, float] = field(default_factory=dict)
    rules: Mapping[str, int] = field(default_factory=dict)

    @property
    def priority(self) -> float:
        """The higher, the earlier served."""
        return self.values.get("priority", 0.0)

    def at_level(self, level: float) -> float:
        """The bits wanted when the rest of the model stands at `level`."""
        if "bits" in self.values:
            return self.values["bits"]
        wanted = min(level + self.values.get("extra_bits", 0.0), self.values.get("max_bits", float("inf")))
        return max(wanted, self.values.get("min_bits", 0.0))

    def lower(self) -> Iterator[tuple[float, str]]:
        """The least bits demanded, each with the field that demands them."""
        return ((self.values[name], name) for name in _LOWER if name in self.values)

    def upper(self) -> Iterator[tuple[float, str]]:
        """The most bits allowed, each with the field that says so."""
        return ((self.values[name], name) for name in _UPPER if name in self.values)


@dataclass(frozen=True)
class Bound:
    """A lower or upper bound and the rule that sets it, in words."""

    bits: float
    rule: str


def wishes(rules: Heuristics, inventory: Inventory) -> dict[str, Wish]:
    """The rules' wishes for every group, by id; later rules override earlier ones field by field.

    Raises: UsageError naming two rules that contradict each other on a group.
    """
    matching = matches(rules, inventory)
    found = {group.id: _wish(rules, matching[group.id]) for group in inventory.groups}
    for group, wish in found.items():
        check_bounds(
            group,
            [Bound(bits, name_rule(rules, wish.rules[name], name)) for bits, name in wish.lower()],
            [Bound(bits, name_rule(rules, wish.rules[name], name)) for bits, name in wish.upper()],
        )
    return found


def check_bounds(group: str, lower: Sequence[Bound], upper: Sequence[Bound]) -> None:
    """Raise UsageError, naming both rules, where the highest lower bound is above the lowest upper one."""
    if not lower or not upper:
        return
    least, most = max(lower, key=lambda bound: bound.bits), min(upper, key=lambda bound: bound.bits)
    if least.bits > most.bits:
        raise UsageError(
            f"two rules contradict each other on {group}: {least.rule} and {most.rule}",
            fix="Change one of them, or narrow its match",
        )


def unmatched(rules: Heuristics, inventory: Inventory) -> tuple[str, ...]:
    """One warning for every rule that is for such a model, but matches none of its groups."""
    used = {index for indices in matches(rules, inventory).values() for index in indices}
    return tuple(
        f"{name_rule(rules, index)} matches nothing in this {inventory.architecture}"
        for index, rule in enumerate(rules.rules)
        if index not in used and _fits_model(rule.match, inventory, _sparse_layers(inventory))
    )


def out_of_reach(rules: Heuristics, inventory: Inventory, widths: Sequence[float]) -> tuple[str, ...]:
    """One warning for every rule that asks for more bits than the highest width has; it gets that width."""
    used = {index for indices in matches(rules, inventory).values() for index in indices}
    return tuple(
        f"{name_rule(rules, index, name)}: the highest width at hand, {max(widths):g}, is assignment instead"
        for index, rule in enumerate(rules.rules)
        for name in _LOWER
        if index in used and (getattr(rule, name) or 0) > max(widths)
    )


def name_rule(rules: Heuristics, index: int, setting: str | None = None) -> str:
    """A rule for people: `rule 2 of hq-like (roles shared.*), min_bits 4`; rules are counted from 1."""
    rule = rules.rules[index]
    given = rule.match.model_dump(exclude_none=True)
    about = "; ".join(f"{name} {_plain(value)}" for name, value in given.items()) or "all groups"
    wanted = "" if setting is None else f", {setting} {getattr(rule, setting):g}"
    return f"rule {index + 1} of {rules.name} ({about}){wanted}"


def matches(rules: Heuristics, inventory: Inventory) -> dict[str, tuple[int, ...]]:
    """Indices of the rules that match each group, in their order."""
    sparse = _sparse_layers(inventory)
    fitting = [i for i, rule in enumerate(rules.rules) if _fits_model(rule.match, inventory, sparse)]
    return {
        group.id: tuple(i for i in fitting if _fits_group(rules.rules[i].match, group, inventory.layers, sparse))
        for group in inventory.groups
    }


def _wish(rules: Heuristics, matching: Sequence[int]) -> Wish:
    values: dict[str, float] = {}
    origin: dict[str, int] = {}
    for index in matching:
        given = rules.rules[index].model_dump(exclude={"match", "source"}, exclude_none=True)
        values |= given
        origin |= dict.fromkeys(given, index)
    return Wish(values, origin)


def _sparse_layers(inventory: Inventory) -> frozenset[int | None]:
    return frozenset(group.layer for group in inventory.groups if group.role in _ROUTED)


def _fits_model(match: Match, inventory: Inventory, sparse: frozenset[int | None]) -> bool:
    right_kind = match.sparse_model is None or match.sparse_model == bool(sparse)
    return right_kind and _any_glob(match.architectures, [inventory.architecture])


def _fits_group(match: Match, group: Group, layers: int, sparse: frozenset[int | None]) -> bool:
    layer = group.layer if group.layer is not None else 0
    if match.layers is not None:
        first, last = (index + layers if index < 0 else index for index in match.layers)
        if not first <= layer <= last:
            return False
    if match.depth is not None and not match.depth[0] <= layer / layers < match.depth[1]:
        return False
    if match.sparse_layer is not None and match.sparse_layer != (group.layer in sparse):
        return False
    return _any_glob(match.roles, [group.role.value, group.role.pair]) and _any_glob(match.keys, group.tensors)


def _any_glob(patterns: Sequence[str] | None, names: Sequence[str]) -> bool:
    if patterns is None:
        return True
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


def _plain(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
