"""`exltune build`: the mixed model of a recipe, spliced from base quants."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from exltune.assembly import resolve_recipe, splice_model
from exltune.budget import directory_size
from exltune.errors import QuantMismatchError
from exltune.exl3.directory import QuantDir
from exltune.exl3.tensors import TensorFiles
from exltune.exl3.writer import QUANTIZATION_CONFIG
from exltune.inventory import load_inventory
from exltune.pipeline.common.reporter import Reporter, Silent
from exltune.schema.inventory import Inventory
from exltune.schema.mix import UNQUANTIZED_BITS, MixSize
from exltune.schema.recipe import Recipe
from exltune.store.files import new_directory
from exltune.store.names import RECIPE
from exltune.store.quants.base_quants import BaseQuant, head_source
from exltune.store.records import write_recipe


def build(
    recipe: Recipe,
    quants: Sequence[BaseQuant],
    out: Path,
    *,
    model: Path | None = None,
    force: bool = False,
    reporter: Reporter | None = None,
    where: str | None = None,
) -> MixSize:
    """Write the EXL3 model of a recipe to `out`; bit for bit the base quants' tensors.

    quants: as find_base_quants gives them. model: the unquantized model, needed where the recipe leaves linears at
    16 bits. where: names the recipe in errors.
    Raises: RecipeError, QuantMismatchError, OutputExistsError, CorruptFileError.
    """
    reporter = reporter or Silent()
    _check_made_for(recipe, quants, where)
    inventory = load_inventory(quants[0].path)
    bits = resolve_recipe(recipe, inventory)
    head = head_source(quants, recipe.head_bits)
    noted = head.directory.config.get("quantization_config", {})
    settings = {
        "bits": round(recipe.achieved_bpw or _mean_bits(inventory, bits), 2),
        "head_bits": head.head_bits,
        **{key: noted[key] for key in ("calibration", "out_scales") if key in noted},
        "codebook": quants[0].codebook,
    }
    with (
        new_directory(out, force=force, replaces=QUANTIZATION_CONFIG) as partial,
        reporter.stage("Building") as progress,
    ):
        files = TensorFiles(model) if model is not None and UNQUANTIZED_BITS in bits.values() else None
        sources = {quant.bits: quant.directory for quant in quants}
        splice_model(partial, inventory, bits, sources, head.directory, settings, files, progress)
        write_recipe(partial / RECIPE, recipe)
        size = directory_size(inventory, QuantDir(partial))
        check_planned(recipe, size, out)
    return size


def _check_made_for(recipe: Recipe, quants: Sequence[BaseQuant], where: str | None) -> None:
    """A fine-tune's quants have the same shapes and bytes: the model that both sides noted decides."""
    if recipe.exltune is None:
        return
    planned = recipe.exltune.provenance.weights_sha256
    noted = [(quant.path, quant.provenance) for quant in quants]
    known = [(path, found.weights_sha256) for path, found in noted if found is not None]
    strangers = [path for path, weights in known if planned is not None and weights not in (None, planned)]
    if strangers:
        raise QuantMismatchError(
            f"the recipe was made for another model than {strangers[0]}",
            where=where,
            fix="Give the base quants that were measured, or measure these",
        )


def check_planned(recipe: Recipe, size: MixSize, out: Path) -> None:
    """Raises: QuantMismatchError where a recipe foresaw other bytes."""
    planned = recipe.exltune.size_bytes if recipe.exltune is not None else None
    if planned is not None and planned != size.size_bytes:
        raise QuantMismatchError(
            f"the model takes {size.size_bytes:,} bytes where the recipe planned {planned:,}",
            where=str(out),
            fix="Use the base quants that the recipe was made for",
        )


def _mean_bits(inventory: Inventory, bits: dict[str, float]) -> float:
    numel = {spec.key: spec.in_features * spec.out_features for spec in inventory.linears}
    return sum(numel[key] * width for key, width in bits.items()) / sum(numel[key] for key in bits)
