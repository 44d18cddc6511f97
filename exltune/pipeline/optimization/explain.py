"""`exltune explain`: where a recipe's bits went, their gain, and how it compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

from exltune.assembly import resolve_recipe
from exltune.budget import SizeModel
from exltune.errors import QuantMismatchError, RecipeError
from exltune.exl3.codebooks import Codebook
from exltune.inventory import inventory_from_config
from exltune.pipeline.optimization.recipe_model import config_of_recipe
from exltune.report.explanation_png import explanation_png
from exltune.report.fused import unfused_note
from exltune.report.heat_map import cells
from exltune.schema.explain import Explanation, GroupBits, Prediction
from exltune.schema.inventory import Inventory
from exltune.schema.measurement import Measurement
from exltune.schema.mix import CACHE_K, CACHE_V, REFERENCE
from exltune.schema.recipe import Recipe, RecipeDetail
from exltune.schema.search import SearchDetail
from exltune.search import load_all_rules
from exltune.search.law.gains import steps_beyond, steps_taken
from exltune.search.rules.best_rule import best_rule
from exltune.store.files import refuse_existing_file, write_bytes
from exltune.store.quants.reference import described
from exltune.store.records import read_recipe, read_record

#: Of quants whose codebook no measurement names.
_CODEBOOK: Codebook = "mul1"


def explain(
    recipe_file: Path,
    *,
    model: Path | None = None,
    measurement_file: Path | None = None,
    rules: Sequence[Path] = (),
    png: Path | None = None,
    force: bool = False,
) -> Explanation:
    """Explain a recipe from itself, its model's config and its measurement, each as far as it is at hand.

    model: directory or config.json, where the recipe does not lie beside it or note it. rules: hand rules beside the
    ones that come with exltune. png: where to draw it; force replaces it.
    Raises: RecipeError, ModelError, DataError, QuantMismatchError for a measurement of another model, UsageError,
    OutputExistsError.
    """
    if png is not None:
        refuse_existing_file(png, force=force)
    recipe = read_recipe(recipe_file)
    found = config_of_recipe(recipe, recipe_file, model)
    inventory = None if found is None else inventory_from_config(*found)
    measurement = None if measurement_file is None else read_record(measurement_file, Measurement)
    subject = _Subject(recipe_file, recipe, inventory, measurement, measurement_file)
    explanation = subject.explanation(rules)
    if png is not None:
        write_bytes(png, explanation_png(explanation))
    return explanation


@dataclass(frozen=True)
class _Subject:
    """A recipe with all that is known about it."""

    file: Path
    recipe: Recipe
    inventory: Inventory | None
    measurement: Measurement | None
    measurement_file: Path | None

    def explanation(self, rules: Sequence[Path]) -> Explanation:
        """Everything that can be said."""
        groups = self._groups()
        self._check_measurement(groups)
        bits = {group.id: group.bits for group in groups}
        left = self._left_bytes(groups)
        detail, known = self.recipe.exltune, load_all_rules(rules)
        steps = () if self.measurement is None else steps_taken(self.measurement, bits, self.sizes)
        beyond = (
            () if self.measurement is None or left is None else steps_beyond(self.measurement, bits, self.sizes, left)
        )
        search = detail.search if detail is not None else None
        return Explanation(
            recipe=str(self.file),
            architecture=self.inventory.architecture if self.inventory is not None else None,
            source=detail.source if detail is not None else None,
            target_bpw=self.recipe.target_bpw,
            achieved_bpw=self.recipe.achieved_bpw,
            head_bits=self.recipe.head_bits,
            cache=_cache(detail),
            size_bytes=detail.size_bytes if detail is not None else None,
            left_bytes=left,
            widths=tuple(sorted({group.bits for group in groups})),
            groups=cells(groups, self._measured_alone()),
            bought=steps,
            upgrades=beyond,
            rule=best_rule(bits, self.recipe, known, self.sizes, self.measurement),
            predictions=_predictions(detail),
            front=search.front if search is not None else (),
            notes=(*self._notes(search, left), *self._unfused(bits, search)),
        )

    @cached_property
    def sizes(self) -> SizeModel | None:
        """Sizes by the measurement's codebook; None without a model."""
        return None if self.inventory is None else SizeModel(self.inventory, self._codebook)

    @property
    def _codebook(self) -> Codebook:
        return _CODEBOOK if self.measurement is None else cast(Codebook, self.measurement.exltune.codebook)

    def _groups(self) -> tuple[GroupBits, ...]:
        if self.inventory is not None:
            return _groups_of_model(self.inventory, resolve_recipe(self.recipe, self.inventory), self._codebook)
        if self.recipe.exltune is not None:
            return _groups_of_choices(self.recipe.exltune.choices, self.file)
        raise RecipeError(
            "the recipe has no exltune block, and no config.json lies beside it: which layers its keys are is unknown",
            where=str(self.file),
            fix="Give `model` DIR_OR_CONFIG",
        )

    def _check_measurement(self, groups: Sequence[GroupBits]) -> None:
        if self.measurement is None:
            return
        measured = self.measurement.exltune
        ids = {member for unit in measured.groups for member in unit.members}
        block = self.recipe.exltune
        other = block is not None and block.provenance.model_sha256 != measured.provenance.model_sha256
        if other or ids != {group.id for group in groups}:
            raise QuantMismatchError(
                "the measurement is of another model than the recipe, or against another reference: "
                f"{described(measured.provenance.reference, measured.provenance.model_path)}",
                where=str(self.measurement_file),
                fix="Give the measurement that the recipe was made from",
            )

    def _measured_alone(self) -> set[str]:
        units = () if self.measurement is None else self.measurement.exltune.groups
        return {unit.id for unit in units if unit.members == (unit.id,)}

    def _unfused(self, bits: Mapping[str, float], search: SearchDetail | None) -> tuple[str, ...]:
        """The loss of unequal pairs, where the search does not say so already."""
        notes = () if self.sizes is None else unfused_note(bits, self.sizes)
        return tuple(note for note in notes if search is None or note not in search.warnings)

    def _left_bytes(self, groups: Sequence[GroupBits]) -> int | None:
        """The part of their budget that groups and head leave."""
        if self.sizes is None or self.recipe.target_bpw is None:
            return None
        block = self.recipe.exltune
        asked = block.budget.groups_budget_bytes if block is not None and block.budget is not None else None
        budget = self.sizes.budget_bytes(self.recipe.target_bpw) if asked is None else asked
        if self.measurement is not None and self.recipe.head_bits is not None:
            head = self.sizes.inventory.head.id
            budget += self.sizes.group_bytes(head, self.measurement.exltune.head_bits)
            budget -= self.sizes.group_bytes(head, self.recipe.head_bits)
        return max(budget - sum(group.size_bytes or 0 for group in groups), 0)

    def _notes(self, search: SearchDetail | None, left: int | None) -> tuple[str, ...]:
        notes = []
        block = self.recipe.exltune
        if block is not None and block.provenance.reference is not None:
            notes.append(block.provenance.reference.told)
        if self.measurement is None:
            notes.append("No measurement is given (`measurement` FILE): the gain of each group is unknown")
        elif left is None:
            notes.append("No model or target is known (`model`): which upgrades did not fit is unknown")
        if self.inventory is None:
            notes.append("No config.json is at hand (`model` DIR_OR_CONFIG): sizes of groups are unknown")
        if search is None:
            notes.append("The recipe records no search: there are no rivals and no front to show")
        else:
            notes += search.warnings
            notes += [f"{name} scored NaN and was dropped" for name in search.dropped]
        return tuple(notes)


def _groups_of_model(inventory: Inventory, bits: Mapping[str, float], codebook: Codebook) -> tuple[GroupBits, ...]:
    sizes = SizeModel(inventory, codebook)
    found = []
    for group in inventory.groups:
        width = bits[group.tensors[0]]
        size = sizes.group_bytes(group.id, width)
        found.append(GroupBits(id=group.id, role=group.role.value, layer=group.layer, bits=width, size_bytes=size))
    return tuple(found)


def _groups_of_choices(choices: Mapping[str, str], file: Path) -> tuple[GroupBits, ...]:
    """Groups as the recipe's block names them: `3.experts.down`."""
    found = []
    for name, choice in choices.items():
        layer, _, role = name.partition(".")
        if not layer.isdecimal():  # The head, and the KV cache's halves.
            continue
        try:
            bits = float(choice)
        except ValueError as error:
            raise RecipeError(f"exltune.choices.{name}: {choice!r} is not a bit width", where=str(file)) from error
        found.append(GroupBits(id=name, role=role, layer=int(layer), bits=bits, size_bytes=None))
    return tuple(found)


def _cache(detail: RecipeDetail | None) -> tuple[str, str] | None:
    if detail is None or not {CACHE_K, CACHE_V} & detail.choices.keys():
        return None
    return detail.choices.get(CACHE_K, REFERENCE), detail.choices.get(CACHE_V, REFERENCE)


def _predictions(detail: RecipeDetail | None) -> tuple[Prediction, ...]:
    """The recipe first, then every method's standing, measured on the freshest rows that it was scored on."""
    if detail is None:
        return ()
    own = Prediction(
        name=detail.source,
        predicted_kld=detail.predicted_kld_nats,
        measured_kld=detail.measured_kld_nats,
        measured_kld_se=detail.measured_kld_se_nats,
        measured_on=None,
    )
    if detail.search is None:
        return (own,)
    found = []
    for row in detail.search.standings:
        fresh = row.selection_kld is not None
        measured = row.selection_kld if fresh else row.search_kld
        found.append(
            Prediction(
                name=row.name,
                predicted_kld=row.predicted_kld,
                measured_kld=measured,
                measured_kld_se=row.selection_kld_se if fresh else row.search_kld_se,
                measured_on=None if measured is None else ("selection" if fresh else "search"),
            )
        )
    outcome = [one for one in found if one.name == detail.search.outcome]
    return (*(outcome or [own]), *(one for one in found if one.name != detail.search.outcome))
