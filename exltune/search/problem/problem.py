"""The problem of a search: a model, the choices at hand, a budget and a measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from exltune.budget import SizeModel
from exltune.errors import BudgetError, UsageError
from exltune.exl3.codebooks import Codebook
from exltune.inventory import cache_half
from exltune.schema.base import Record
from exltune.schema.candidate import Candidate
from exltune.schema.inventory import Inventory, Role, Unit
from exltune.schema.measurement import Measurement
from exltune.schema.mix import Choice, choice_of_bits
from exltune.search.problem.pairs import kept_whole


class UnitOption(Record):
    """One way to take a unit: its bits, the choice that a mix names, and its bytes."""

    bits: float
    choice: Choice
    size_bytes: int


class SearchUnit(Unit):
    """A unit and its options, ascending in bits."""

    options: tuple[UnitOption, ...]


@dataclass(frozen=True)
class SearchProblem:
    """A feasible budget over the choices at hand.

    widths: bits of the base quants, ascending. groups_budget_bytes: limit of all groups together beside the
    default head and cache. head_choice, head_bits: the default head. extras: default choice of every further key of a
    mix (the KV cache's bits). wider: units beyond the groups that the search may change (head, cache); their default
    bytes are part of its budget. floors: the fewest bits that a group may take. fits: whether a mix's choices keep
    what bytes alone cannot say, such as a split over GPUs. keep_pairs: whether k and v, and gate and up, must take one
    width, so that exllamav3 fuses them; the measurement's units are then no finer.
    """

    sizes: SizeModel
    target_bpw: float
    groups_budget_bytes: int
    widths: tuple[float, ...]
    head_choice: Choice
    head_bits: float
    measurement: Measurement | None = None
    extras: Mapping[str, Choice] = field(default_factory=dict)
    wider: tuple[SearchUnit, ...] = ()
    floors: Mapping[str, float] = field(default_factory=dict)
    fits: Callable[[Mapping[str, Choice]], bool] | None = None
    keep_pairs: bool = False

    @property
    def inventory(self) -> Inventory:
        """The model's inventory."""
        return self.sizes.inventory

    @cached_property
    def group_ids(self) -> tuple[str, ...]:
        """Ids of all groups in forward order, without the head."""
        return tuple(group.id for group in self.inventory.groups)

    @cached_property
    def _option_index(self) -> tuple[dict[Choice, int], ...]:
        """Index of every unit's options by choice."""
        return tuple({option.choice: i for i, option in enumerate(unit.options)} for unit in self.units)

    @cached_property
    def units(self) -> tuple[SearchUnit, ...]:
        """All that the search decides: the measured groups or parts, then open choices beyond them."""
        return (*self.group_units, *self.wider)

    @cached_property
    def group_units(self) -> tuple[SearchUnit, ...]:
        """The measured groups or parts, with the base quants that their floors allow."""
        return tuple(self._with_options(unit) for unit in self._measured())

    @property
    def budget_bytes(self) -> int:
        """Limit of all units together."""
        return self.groups_budget_bytes + sum(self._default(unit).size_bytes for unit in self.wider)

    def groups_bytes(self, bits: Mapping[str, float]) -> int:
        """Bytes of all groups at the given bits."""
        return sum(self.sizes.group_bytes(group, bits[group]) for group in self.group_ids)

    def candidate(
        self, name: str, bits: Mapping[str, float], wider: Mapping[str, UnitOption] | None = None
    ) -> Candidate:
        """A candidate from the bits of every group; head and cache are defaults but for those in `wider`, by key."""
        head = self.inventory.head.id
        choices = {group: choice_of_bits(bits[group]) for group in self.group_ids}
        choices |= {head: self.head_choice, **self.extras}
        choices |= {key: option.choice for key, option in (wider or {}).items()}
        head_bits = wider[head].bits if wider and head in wider else self.head_bits
        size = self.sizes.mix_size({**{group: bits[group] for group in self.group_ids}, head: head_bits})
        above = all(bits[group] >= least for group, least in self.floors.items())
        return Candidate(name=name, choices=choices, size_bytes=size.size_bytes, bpw=size.bpw, meets_floors=above)

    def candidate_of(self, name: str, assignment: Sequence[int]) -> Candidate:
        """A candidate from the index of every unit's option."""
        chosen = zip(self.units, assignment, strict=True)
        keys = {member: unit.options[index] for unit, index in chosen for member in unit.members}
        groups = set(self.group_ids)
        bits = {key: option.bits for key, option in keys.items() if key in groups}
        return self.candidate(name, bits, {key: option for key, option in keys.items() if key not in groups})

    def assignment_of(self, choices: Mapping[str, Choice]) -> tuple[int, ...] | None:
        """Index of every unit's option in a mix; None where members differ or a choice is not an option here."""
        assignment = []
        for unit, index in zip(self.units, self._option_index, strict=True):
            found = {choices.get(member) for member in unit.members}
            option = index.get(found.pop() or "") if len(found) == 1 else None
            if option is None:
                return None
            assignment.append(option)
        return tuple(assignment)

    def bytes_of(self, assignment: Sequence[int]) -> int:
        """Bytes of all units at the given options."""
        return sum(unit.options[index].size_bytes for unit, index in zip(self.units, assignment, strict=True))

    def within(self, assignment: Sequence[int]) -> bool:
        """Whether a choice of options keeps the budget, and fits."""
        if self.bytes_of(assignment) > self.budget_bytes:
            return False
        return self.fits is None or self.fits(self.candidate_of("", assignment).choices)

    def head_bits_of(self, choice: Choice) -> float:
        """Bits of the head in a base quant that an option names."""
        options = (option for unit in self.wider if unit.role == Role.HEAD for option in unit.options)
        return next((option.bits for option in options if option.choice == choice), self.head_bits)

    def check_floors(self) -> None:
        """Raise BudgetError, with the smallest feasible bpw, where the floors do not fit."""
        least = sum(unit.options[0].size_bytes for unit in self.units)
        if least > self.budget_bytes:
            groups = sum(
                self.sizes.group_bytes(group, max(self.widths[0], self.floors.get(group, 0)))
                for group in self.group_ids
            )
            raise BudgetError(
                f"the floors do not fit in {self.target_bpw:g} bpw",
                fix=f"The smallest mix that keeps them has {self.sizes.bpw_of(groups):.3f} bpw",
            )

    def _default(self, unit: SearchUnit) -> UnitOption:
        """The option of a wider unit that the default head or cache is."""
        defaults = {self.inventory.head.id: self.head_choice, **self.extras}
        wanted = {defaults[member] for member in unit.members}
        return next(option for option in unit.options if {option.choice} == wanted)

    def _measured(self) -> Iterable[Unit]:
        if self.measurement is not None:
            return self.measurement.exltune.groups
        return (group.alone for group in self.inventory.groups)

    def _with_options(self, unit: Unit) -> SearchUnit:
        least = max(self.floors.get(member, 0.0) for member in unit.members)
        return SearchUnit(
            **unit.as_fields,
            options=tuple(
                UnitOption(
                    bits=width,
                    choice=choice_of_bits(width),
                    size_bytes=sum(self.sizes.group_bytes(member, width) for member in unit.members),
                )
                for width in self.widths
                if width >= least
            ),
        )


def search_problem(
    inventory: Inventory,
    *,
    target_bpw: float,
    widths: Iterable[float],
    codebook: Codebook,
    head_choice: Choice,
    head_bits: float,
    measurement: Measurement | None = None,
    extras: Mapping[str, Choice] | None = None,
    wider: Sequence[SearchUnit] = (),
    floors: Mapping[str, float] | None = None,
    groups_budget_bytes: int | None = None,
    keep_pairs: bool = False,
) -> SearchProblem:
    """The problem for a target in exllamav3's bpw; groups_budget_bytes: where it follows from something else.

    keep_pairs: units that were measured apart become one.
    Raises: BudgetError naming the smallest and largest possible bpw, UsageError for a measurement of another model
    and for floors above every width.
    """
    sizes, available = SizeModel(inventory, codebook), tuple(sorted(set(widths)))
    if measurement is not None:
        _check_measurement(inventory, measurement)
        measurement = kept_whole(measurement, inventory) if keep_pairs else measurement
    for group, least in (floors or {}).items():
        if least > available[-1]:
            raise UsageError(f"the floor of {group} is {least:g} bits, the highest base quant has {available[-1]:g}")
    problem = SearchProblem(
        sizes=sizes,
        target_bpw=target_bpw,
        groups_budget_bytes=groups_budget_bytes or sizes.check_target(target_bpw, available),
        widths=available,
        head_choice=head_choice,
        head_bits=head_bits,
        measurement=measurement,
        extras=dict(extras or {}),
        wider=tuple(wider),
        floors=dict(floors or {}),
        keep_pairs=keep_pairs,
    )
    problem.check_floors()
    return problem


def head_unit(sizes: SizeModel, heads: Mapping[float, Choice]) -> SearchUnit:
    """The head as a unit; heads: bits -> the base quant whose head has them."""
    head = sizes.inventory.head
    options = tuple(
        UnitOption(bits=bits, choice=choice, size_bytes=sizes.group_bytes(head.id, bits))
        for bits, choice in sorted(heads.items())
    )
    return SearchUnit(**head.alone.as_fields, options=options)


def cache_unit(key: str, bytes_by_bits: Mapping[int, int]) -> SearchUnit:
    """Half of the KV cache as a unit; bytes_by_bits: its bytes at the asked context, by its bits."""
    options = tuple(
        UnitOption(bits=bits, choice=str(bits), size_bytes=size) for bits, size in sorted(bytes_by_bits.items())
    )
    ascending = all(low.size_bytes <= high.size_bytes for low, high in pairwise(options))
    if not ascending:
        raise UsageError(f"{key}: more bits cannot take fewer bytes")
    return SearchUnit(**cache_half(key).as_fields, options=options)


def _check_measurement(inventory: Inventory, measurement: Measurement) -> None:
    measured = [member for group in measurement.exltune.groups for member in group.members]
    ids = [group.id for group in inventory.groups]
    if sorted(measured) != sorted(ids):
        odd = sorted(set(measured) ^ set(ids))[:4] or ["a group that is named twice"]
        raise UsageError(
            f"the measurement does not fit the model: {', '.join(odd)}", fix="Measure this model with these quants"
        )
