"""Mixes from hand rules (heuristics/*.yaml), at any feasible budget."""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import yaml
from pydantic import ValidationError

from exltune.errors import UsageError
from exltune.schema.heuristics import Heuristics, Match
from exltune.schema.inventory import Group, Inventory
from exltune.search.problem import SearchProblem

#: The rules that come with exltune: beside the package in a clone, among the shared data of an installed wheel.
_CLONE = Path(__file__).resolve().parents[2] / "heuristics"
RULES_DIR = _CLONE if _CLONE.is_dir() else Path(sysconfig.get_path("data")) / "share" / "exltune" / "heuristics"


@dataclass(frozen=True)
class _Wish:
    """What the rules want for one group; see schema/heuristics.py."""

    bits: float | None = None
    min_bits: float | None = None
    max_bits: float | None = None
    extra_bits: float = 0.0
    priority: float = 0.0

    def at_level(self, level: float) -> float:
        """The bits wanted when the rest of the model stands at `level`."""
        if self.bits is not None:
            return self.bits
        wanted = level + self.extra_bits
        if self.max_bits is not None:
            wanted = min(wanted, self.max_bits)
        return max(wanted, self.min_bits) if self.min_bits is not None else wanted


def load_rules(path: str | Path) -> Heuristics:
    """The rules of one YAML file. Raises: UsageError."""
    try:
        return Heuristics.model_validate(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"the rules cannot be read ({error})", where=str(path)) from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{field}: {first['msg']}", where=str(path), fix="See heuristics/README.md") from error


def load_all_rules(directory: str | Path = RULES_DIR) -> tuple[Heuristics, ...]:
    """The rules of every YAML file of a directory, by file name. Raises: UsageError when there are none."""
    files = sorted(Path(directory).glob("*.yaml"))
    if not files:
        raise UsageError("no rules here", where=str(directory), fix="Give a directory with *.yaml rules")
    return tuple(load_rules(file) for file in files)


def rules_mix(problem: SearchProblem, rules: Heuristics) -> dict[str, float]:
    """Bits by group that follow the rules and fill the budget as far as whole promotions allow.

    The level of the model rises through the available widths; at each level every group is promoted, the highest
    priority first and then in forward order, to what its rules want there, or as near to it as still fits. What is
    left when all wishes are met goes to any group, in the same order.
    """
    groups = problem.inventory.groups
    wishes = {group.id: _wish(rules, group, problem.inventory) for group in groups}
    order = sorted(problem.group_ids, key=lambda group: -wishes[group].priority)
    filling = _Filling(problem)
    for level in problem.widths:
        for group in order:
            filling.raise_towards(group, wishes[group].at_level(level))
    for level in problem.widths:
        for group in order:
            filling.raise_towards(group, level)
    return filling.bits


class _Filling:
    """Bits by group that only rise, and never past the budget."""

    def __init__(self, problem: SearchProblem) -> None:
        self.problem = problem
        self.bits = dict.fromkeys(problem.group_ids, problem.widths[0])
        self.left = problem.budget_bytes - problem.groups_bytes(self.bits)

    def raise_towards(self, group: str, wanted: float) -> None:
        """Promote a group to the highest available width that is not above `wanted` and fits."""
        size, now = self.problem.sizes.group_bytes, self.bits[group]
        for width in reversed(self.problem.widths):
            if now < width <= wanted and size(group, width) - size(group, now) <= self.left:
                self.left -= size(group, width) - size(group, now)
                self.bits[group] = width
                return


def _wish(rules: Heuristics, group: Group, inventory: Inventory) -> _Wish:
    settings: dict[str, float] = {}
    for rule in rules.rules:
        if _matches(rule.match, group, inventory):
            settings |= rule.model_dump(exclude={"match", "source"}, exclude_none=True)
    return _Wish(**settings)


def _matches(match: Match, group: Group, inventory: Inventory) -> bool:
    layer = group.layer if group.layer is not None else 0
    if match.layers is not None:
        first, last = (index + inventory.layers if index < 0 else index for index in match.layers)
        if not first <= layer <= last:
            return False
    if match.depth is not None and not match.depth[0] <= layer / inventory.layers < match.depth[1]:
        return False
    return (
        _any_glob(match.roles, [group.role.value])
        and _any_glob(match.keys, group.tensors)
        and _any_glob(match.architectures, [inventory.architecture])
    )


def _any_glob(patterns: Sequence[str] | None, names: Sequence[str]) -> bool:
    if patterns is None:
        return True
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)
