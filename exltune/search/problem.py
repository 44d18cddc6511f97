"""What a search is asked: a model, the base quants at hand, a budget and a measurement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from exltune.budget import SizeModel
from exltune.errors import UsageError
from exltune.exl3.codebooks import Codebook
from exltune.schema.inventory import Inventory
from exltune.schema.measurement import Measurement
from exltune.schema.mix import Choice, Mix, choice_of_bits
from exltune.schema.seed import Seed


@dataclass(frozen=True)
class SearchProblem:
    """A feasible budget over the bit widths of the base quants at hand.

    widths: ascending. budget_bytes: what the groups together may take. head_choice and head_bits: the head's base
    quant and the bits it has there; no method changes them.
    """

    sizes: SizeModel
    target_bpw: float
    budget_bytes: int
    widths: tuple[float, ...]
    head_choice: Choice
    head_bits: float
    measurement: Measurement | None = None

    @property
    def inventory(self) -> Inventory:
        """The model's inventory."""
        return self.sizes.inventory

    @property
    def group_ids(self) -> tuple[str, ...]:
        """Ids of all groups in forward order, without the head."""
        return tuple(group.id for group in self.inventory.groups)

    def groups_bytes(self, bits: Mapping[str, float]) -> int:
        """Bytes of all groups at the given bits."""
        return sum(self.sizes.group_bytes(group, bits[group]) for group in self.group_ids)

    def seed(self, name: str, bits: Mapping[str, float]) -> Seed:
        """A seed from the bits of every group; the head is added."""
        head = self.inventory.head.id
        choices = {group: choice_of_bits(bits[group]) for group in self.group_ids} | {head: self.head_choice}
        size = self.sizes.mix_size({**{group: bits[group] for group in self.group_ids}, head: self.head_bits})
        return Seed(name=name, mix=Mix(name=name, choices=choices), size=size)


def search_problem(
    inventory: Inventory,
    *,
    target_bpw: float,
    widths: Iterable[float],
    codebook: Codebook,
    head_choice: Choice,
    head_bits: float,
    measurement: Measurement | None = None,
) -> SearchProblem:
    """The problem for a target in exllamav3's bpw.

    Raises: BudgetError naming the smallest and largest possible bpw, UsageError for a measurement of another model.
    """
    sizes, available = SizeModel(inventory, codebook), tuple(sorted(set(widths)))
    if measurement is not None:
        _check_measurement(inventory, measurement)
    return SearchProblem(
        sizes=sizes,
        target_bpw=target_bpw,
        budget_bytes=sizes.check_target(target_bpw, available),
        widths=available,
        head_choice=head_choice,
        head_bits=head_bits,
        measurement=measurement,
    )


def _check_measurement(inventory: Inventory, measurement: Measurement) -> None:
    measured = [member for group in measurement.exltune.groups for member in group.members]
    ids = [group.id for group in inventory.groups]
    if sorted(measured) != sorted(ids):
        odd = sorted(set(measured) ^ set(ids))[:4] or ["a group that is named twice"]
        raise UsageError(
            f"the measurement does not fit the model: {', '.join(odd)}", fix="Measure this model with these quants"
        )
