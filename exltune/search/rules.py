"""Mixes from hand rules (heuristics/*.yaml), at any feasible budget."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

import yaml
from pydantic import ValidationError

from exltune.errors import UsageError
from exltune.schema.heuristics import Heuristics
from exltune.search.problem import SearchProblem
from exltune.search.wishes import wishes

#: The rules that come with exltune: beside the package in a clone, among the shared data of an installed wheel.
_CLONE = Path(__file__).resolve().parents[2] / "heuristics"
RULES_DIR = _CLONE if _CLONE.is_dir() else Path(sysconfig.get_path("data")) / "share" / "exltune" / "heuristics"


def load_rules(path: str | Path) -> Heuristics:
    """The rules of one YAML file. Raises: UsageError."""
    try:
        return Heuristics.model_validate(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"the rules cannot be read ({error})", where=str(path)) from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise UsageError(f"{field}: {first['msg']}", where=str(path), fix="See heuristics/README.md") from error


def load_all_rules(
    extra_files: Iterable[str | Path] = (), *, directory: str | Path = RULES_DIR
) -> tuple[Heuristics, ...]:
    """The rules of every YAML file of a directory, by file name, then the user's own in the order given.

    Raises: UsageError when the directory has none, or two files have one name.
    """
    files = sorted(Path(directory).glob("*.yaml"))
    if not files:
        raise UsageError("no rules here", where=str(directory), fix="Give a directory with *.yaml rules")
    found: dict[str, tuple[Heuristics, str | Path]] = {}
    for path in (*files, *extra_files):
        rules = load_rules(path)
        if rules.name in found:
            raise UsageError(
                f"the rules are named {rules.name}, and so are those of {found[rules.name][1]}",
                where=str(path),
                fix="Give them another name",
            )
        found[rules.name] = (rules, path)
    return tuple(rules for rules, _ in found.values())


def find_rules(name_or_file: str, known: Sequence[Heuristics]) -> Heuristics:
    """The known rules of that name, else those of that file. Raises: UsageError listing the known names."""
    for rules in known:
        if rules.name == name_or_file:
            return rules
    if not Path(name_or_file).is_file():
        names = ", ".join(rules.name for rules in known)
        raise UsageError(f"{name_or_file!r} names no rules and no file", fix=f"Give a file, or one of {names}")
    return load_rules(name_or_file)


def rules_mix(problem: SearchProblem, rules: Heuristics) -> dict[str, float]:
    """Bits by group that follow the rules and fill the budget as far as whole promotions allow.

    Every group starts at its floor. The level of the model rises through the available widths; at each level all
    groups are promoted, the highest priority first, to what their rules want there. Where that does not fit, groups
    of one priority are scaled down together: all climb one width before any climbs the next, in forward order. What
    is left when all wishes are met goes to any group, in the same order.
    Raises: UsageError naming two rules that contradict each other.
    """
    wanted = wishes(rules, problem.inventory)
    ordered = sorted(problem.group_ids, key=lambda group: -wanted[group].priority)
    equals = [tuple(groups) for _, groups in groupby(ordered, key=lambda group: wanted[group].priority)]
    filling = _Filling(problem)
    for level in problem.widths:
        for groups in equals:
            for step in problem.widths:
                for group in groups:
                    filling.raise_towards(group, min(step, wanted[group].at_level(level)))
    for level in problem.widths:
        for group in ordered:
            filling.raise_towards(group, level)
    return filling.bits


class _Filling:
    """Bits by group that only rise, and never past the budget."""

    def __init__(self, problem: SearchProblem) -> None:
        self.problem = problem
        lowest = problem.widths[0]
        self.bits = {group: problem.floors.get(group, lowest) for group in problem.group_ids}
        self.left = problem.groups_budget_bytes - problem.groups_bytes(self.bits)

    def raise_towards(self, group: str, wanted: float) -> None:
        """Promote a group to the highest available width that is not above `wanted` and fits."""
        size, now = self.problem.sizes.group_bytes, self.bits[group]
        for width in reversed(self.problem.widths):
            if now < width <= wanted and size(group, width) - size(group, now) <= self.left:
                self.left -= size(group, width) - size(group, now)
                self.bits[group] = width
                return
