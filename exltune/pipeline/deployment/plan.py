"""`exltune plan`: whether a model, a recipe or a quant fits hardware and use, and the remedies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from exltune.assembly import resolve_recipe
from exltune.budget import (
    Limits,
    Question,
    directory_weights,
    linear_weights,
    model_profile,
    recalibrate,
    weights_of_bits,
)
from exltune.budget import plan as plan_question
from exltune.errors import NotAModelError, RecipeError, UsageError
from exltune.exl3.codebooks import HALF_BITS, INTEGER_BITS, Codebook
from exltune.exl3.directory import QuantDir
from exltune.exl3.tensors import TensorFiles, read_json
from exltune.inventory import load_inventory, read_config
from exltune.pipeline.optimization.recipe_model import config_of_recipe
from exltune.schema.defaults import DEFAULT_HEAD_BITS
from exltune.schema.hardware import Readings, SizeUnit, Use
from exltune.schema.mix import UNQUANTIZED_BITS
from exltune.schema.plan import Plan
from exltune.store.records import read_recipe, read_record

_CODEBOOK: Codebook = "mul1"
_RECIPES = (".yaml", ".yml")
_BIT_WIDTHS = (*INTEGER_BITS, *HALF_BITS, UNQUANTIZED_BITS)


@dataclass(frozen=True)
class PlanOptions:
    """Bits that the user names: a bit width or an average, and the head's; None where the source decides."""

    bits: float | None = None
    head_bits: float | None = None


def plan(
    source: Path,
    limits: Limits,
    use: Use,
    *,
    options: PlanOptions | None = None,
    model: Path | None = None,
    readings: Path | None = None,
    unit: SizeUnit = "GiB",
) -> Plan:
    """Plan a model directory, an EXL3 directory, a recipe or a config.json alone.

    model: directory or config.json that a recipe belongs to. readings: constants from a real machine. unit: of the
    sizes in texts.
    Raises: ModelError, RecipeError, DataError for readings, UsageError for options that contradict.
    """
    question = replace(_question(source, limits, use, options or PlanOptions(), model), unit=unit)
    if readings is None:
        return plan_question(question)
    overheads, changed = recalibrate(read_record(readings, Readings), question.profile, use)
    return plan_question(replace(question, overheads=overheads)).model_copy(update={"recalibrated": changed})


def _question(source: Path, limits: Limits, use: Use, options: PlanOptions, model: Path | None) -> Question:
    if source.suffix.lower() in _RECIPES and not source.is_dir():
        _refuse(options, source, "a recipe")
        return _of_recipe(source, limits, use, model)
    if model is not None:
        raise UsageError("`model` belongs to recipes alone", fix=f"Leave it out, or give a recipe instead of {source}")
    if source.suffix.lower() == ".json" and source.is_file():
        return _of_config(read_json(source), source, limits, use, options)
    if not source.is_dir():
        what = "it is not a directory, recipe (.yaml) or config (.json)" if source.exists() else "there is no such path"
        raise NotAModelError(what, where=str(source), fix="Give a model, an EXL3 directory, a recipe or a config.json")
    config = read_config(source)
    if not any(source.glob("*.safetensors")):
        if config.get("quantization_config", {}).get("quant_method") == "exl3":
            raise NotAModelError(
                "an EXL3 quant whose safetensors are missing",
                where=str(source),
                fix="Download it whole, or give its config.json to plan the model it was made of",
            )
        return _of_config(config, source / "config.json", limits, use, options)
    if not any(name.endswith(".trellis") for name in TensorFiles(source).entries):
        return _of_config(config, source / "config.json", limits, use, options)
    _refuse(options, source, "a finished quant")
    return _of_quant(config, source, limits, use)


def _of_config(config: Mapping[str, Any], where: Path, limits: Limits, use: Use, options: PlanOptions) -> Question:
    profile = model_profile(config, _CODEBOOK, str(where))
    head_bits = DEFAULT_HEAD_BITS if options.head_bits is None else options.head_bits
    _check_width("`head_bits`", head_bits)
    weights = None if options.bits is None else weights_of_bits(profile, options.bits, head_bits)
    return Question(profile, limits, use, weights, head_bits)


def _of_recipe(source: Path, limits: Limits, use: Use, model: Path | None) -> Question:
    recipe = read_recipe(source)
    found = config_of_recipe(recipe, source, model)
    if found is None:
        raise NotAModelError("no model is known for this recipe", where=str(source), fix="Give `model` DIR_OR_CONFIG")
    config, where = found
    profile = model_profile(config, _CODEBOOK, where)
    bits = resolve_recipe(recipe, profile.inventory)
    for key, width in bits.items():
        if width not in _BIT_WIDTHS:
            known = ", ".join(f"{found:g}" for found in sorted(_BIT_WIDTHS))
            raise RecipeError(f"{key} has {width:g} bits, which do not exist", where=str(source), fix=f"Known: {known}")
    head_bits = recipe.head_bits or DEFAULT_HEAD_BITS
    return Question(profile, limits, use, linear_weights(profile, bits, head_bits), head_bits)


def _of_quant(config: Mapping[str, Any], source: Path, limits: Limits, use: Use) -> Question:
    inventory, quant = load_inventory(source, planning=True), QuantDir(source)
    profile = model_profile(config, quant.codebook(quant.keys[0]), str(source / "config.json"))
    disk_bytes = sum(entry.nbytes for entry in quant.files.entries.values())
    head_bits = quant.bits(inventory.head.tensors[0])
    return Question(profile, limits, use, directory_weights(inventory, quant), head_bits, disk_bytes=disk_bytes)


def _refuse(options: PlanOptions, source: Path, what: str) -> None:
    for option, value in (("`bits`", options.bits), ("`head_bits`", options.head_bits)):
        if value is not None:
            raise UsageError(f"{option} does not go with {what}", where=str(source), fix=f"Leave {option} out")


def _check_width(option: str, bits: float) -> None:
    if bits not in _BIT_WIDTHS:
        known = ", ".join(f"{found:g}" for found in sorted(_BIT_WIDTHS))
        raise UsageError(f"{option} {bits:g} do not exist", fix=f"Give one of {known}")
