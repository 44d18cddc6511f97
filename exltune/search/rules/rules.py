"""Mixes from hand rules (exltune/heuristics/*.yaml), at any feasible budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import groupby
from pathlib import Path

import yaml
from pydantic import ValidationError

from exltune.errors import UsageError
from exltune.inventory import groups_at_level
from exltune.schema.heuristics import Heuristics
from exltune.search.problem.problem import SearchProblem
from exltune.search.rules.wishes import Wish, wishes

#: The rules that come with exltune: data of the package, which may lie in a zip file.
RULES_DIR: Traversable = files("exltune") / "heuristics"


def load_rules(path: str | Path | Traversable) -> Heuristics:
    """The rules of one YAML file. Raises: UsageError."""
    file = Path(path) if isinstance(path, str) else path
    try:
        return Heuristics.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"the rules cannot be read ({error})", where=str(path)) from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise UsageError(f"{field}: {first['msg']}", where=str(path), fix=f"See {RULES_DIR / 'README.md'}") from error


def load_all_rules(
    extra_files: Iterable[str | Path] = (), *, directory: Path | Traversable = RULES_DIR
) -> tuple[Heuristics, ...]:
    """The rules of every YAML file of a directory, by file name, then the user's own in the order given.

    Raises: UsageError when the directory has none, or two files have one name.
    """
    here = [file for file in directory.iterdir() if file.name.endswith(".yaml")] if directory.is_dir() else []
    if not here:
        raise UsageError("no rules here", where=str(directory), fix="Give a directory with *.yaml rules")
    found: dict[str, tuple[Heuristics, str | Path | Traversable]] = {}
    for path in (*sorted(here, key=lambda file: file.name), *extra_files):
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

    Every group starts at its floor; k and v, and gate and up, are one unless rules want different things of them. The
    level of the model rises through the available widths; at each level all groups are promoted, the highest priority
    first, to their rules' wishes there. Where that does not fit, groups of one priority are scaled down together: all
    climb one width before any climbs the next, in forward order. Bytes left when all wishes are met go to any
    group, in the same order.
    Raises: UsageError naming two rules that contradict each other.
    """
    climbers = sorted(_climbers(problem, wishes(rules, problem.inventory)), key=lambda one: -one.priority)
    equals = [tuple(some) for _, some in groupby(climbers, key=lambda one: one.priority)]
    filling = _Filling(problem, climbers)
    for level in problem.widths:
        for some in equals:
            for step in problem.widths:
                for climber in some:
                    filling.raise_towards(climber, min(step, climber.at_level(level)))
    for level in problem.widths:
        for climber in climbers:
            filling.raise_towards(climber, level)
    return filling.bits


@dataclass(frozen=True)
class _Climber:
    """Groups that take one width together, and the rules' wish for them: of different wishes the greatest."""

    groups: tuple[str, ...]
    wishes: tuple[Wish, ...]

    @property
    def priority(self) -> float:
        """The higher, the earlier served."""
        return max(wish.priority for wish in self.wishes)

    def at_level(self, level: float) -> float:
        """The bits wanted when the rest of the model stands at `level`."""
        return max(wish.at_level(level) for wish in self.wishes)


def _climbers(problem: SearchProblem, wanted: Mapping[str, Wish]) -> list[_Climber]:
    """All groups in forward order, pairs together where they must be or nothing sets them apart."""
    found: list[tuple[str, ...]] = []
    for pair in groups_at_level(problem.inventory, 3):
        distinct = {(*sorted(wanted[group].values.items()), problem.floors.get(group)) for group in pair.members}
        together = problem.keep_pairs or len(distinct) == 1
        found += [pair.members] if together else [(group,) for group in pair.members]
    return [_Climber(groups, tuple(wanted[group] for group in groups)) for groups in found]


class _Filling:
    """Bits by group that only rise, and never past the budget."""

    def __init__(self, problem: SearchProblem, climbers: Iterable[_Climber]) -> None:
        self.problem = problem
        lowest = problem.widths[0]
        self.bits = {group: problem.floors.get(group, lowest) for group in problem.group_ids}
        for climber in climbers:
            self.bits |= dict.fromkeys(climber.groups, max(self.bits[group] for group in climber.groups))
        self.left = problem.groups_budget_bytes - problem.groups_bytes(self.bits)

    def raise_towards(self, climber: _Climber, wanted: float) -> None:
        """Promote to the highest available width that is not above `wanted` and fits."""
        now = self.bits[climber.groups[0]]
        for width in reversed(self.problem.widths):
            cost = self._size(climber, width) - self._size(climber, now)
            if now < width <= wanted and cost <= self.left:
                self.left -= cost
                self.bits |= dict.fromkeys(climber.groups, width)
                return

    def _size(self, climber: _Climber, width: float) -> int:
        return sum(self.problem.sizes.group_bytes(group, width) for group in climber.groups)
