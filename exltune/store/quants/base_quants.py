"""Base quants at hand: the EXL3 directories in a folder, by their bits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from exltune.budget import SizeModel
from exltune.corpora import check_same_tokenizer
from exltune.errors import QuantMismatchError
from exltune.inventory import check_same_model, load_inventory, model_fingerprint
from exltune.measurement import QuantSizes
from exltune.schema.defaults import DEFAULT_HEAD_BITS
from exltune.schema.inventory import Inventory
from exltune.schema.mix import Choice
from exltune.store.quants.directories import BaseQuant, check_weights_of, quant_dirs, read_base_quant
from exltune.store.quants.reference_checks import made_from, refuse_finer

__all__ = ["BaseQuant", "find_base_quants", "head_source", "paths_of", "quant_sizes"]


def find_base_quants(
    folder: Path, model: Path | None = None, fingerprint: Callable[[Path], str] = model_fingerprint
) -> list[BaseQuant]:
    """All base quants in a folder by ascending bits, each checked to belong to `model`, or all to one model.

    model: the reference, which may be a quant itself, with no fewer bits than these. fingerprint: sha256 of a model
    directory, from where it is known already. Mixes, models that build made, and unquantized models are passed over.
    Raises: QuantMismatchError where nothing is left, where a quant belongs to another model or has more bits than the
    reference, or where two have the same bits; all that reading them raises.
    """
    if not folder.is_dir():
        raise QuantMismatchError("no such directory", where=str(folder), fix="Give the `out` of exltune quantize")
    if model is not None:
        # A model that is damaged itself is better told than taken for another one.
        load_inventory(model)
    found = sorted(filter(None, map(read_base_quant, quant_dirs(folder))), key=lambda quant: quant.bits)
    if not found:
        raise QuantMismatchError(
            "it holds no base quants", where=str(folder), fix="Make them with exltune quantize, and its `out`"
        )
    for quant in found:
        check_same_model(model or found[0].path, quant.path)
        check_same_tokenizer(model or found[0].path, quant.path)
        if model is not None and quant.provenance is None:
            check_weights_of(quant, model)
    if model is not None:
        refuse_finer(found, model)
    _check_records(found, None if model is None else made_from(model, fingerprint))
    _refuse_doubles(found)
    return found


def head_source(quants: Iterable[BaseQuant], head_bits: float | None) -> BaseQuant:
    """The base quant whose head has the bits asked for; where nothing is asked exllamav3's default of 6 if any has it.

    Raises: QuantMismatchError where no head has them.
    """
    quants = list(quants)
    if head_bits is None:
        return next((quant for quant in quants if quant.head_bits == DEFAULT_HEAD_BITS), quants[0])
    fitting = [quant for quant in quants if quant.head_bits == head_bits]
    if not fitting:
        have = ", ".join(sorted({f"{quant.head_bits:g}" for quant in quants}))
        raise QuantMismatchError(f"no base quant has a head of {head_bits:g} bits, only {have}")
    return fitting[0]


def quant_sizes(
    inventory: Inventory, quants: Sequence[BaseQuant], head_bits: float, fingerprint: Callable[[Path], str]
) -> list[QuantSizes]:
    """The notes of a measurement on its base quants; sizes are those of mixes with one head of `head_bits`."""
    sizes = SizeModel(inventory, quants[0].codebook)
    result = []
    for quant in quants:
        total = sizes.uniform_size(quant.bits, head_bits)
        result.append(
            QuantSizes(
                choice=quant.choice,
                path=quant.path.resolve(),
                sha256=fingerprint(quant.path),
                bits=quant.bits,
                bpw=total.bpw,
                size_bytes=total.size_bytes,
                group_bytes={group.id: sizes.group_bytes(group.id, quant.bits) for group in inventory.groups},
            )
        )
    return result


def paths_of(quants: Iterable[BaseQuant]) -> dict[Choice, Path]:
    """Choice -> directory, as engines take it."""
    return {quant.choice: quant.path for quant in quants}


def _check_records(quants: Sequence[BaseQuant], expected: str | None) -> None:
    """Fine-tunes of one model may share unquantized tensors: where exltune noted a quant's model, its hash decides."""
    for quant in quants:
        noted = quant.provenance
        if noted is None:
            continue
        expected = expected or noted.model_sha256
        if noted.model_sha256 != expected:
            raise QuantMismatchError(
                f"it was made from other weights, those that were in {noted.model_path}",
                where=str(quant.path),
                fix="Quantize this model again",
            )


def _refuse_doubles(quants: Sequence[BaseQuant]) -> None:
    for low, high in pairwise(quants):
        if low.bits == high.bits:
            raise QuantMismatchError(
                f"{low.path.name} and {high.path.name} both have {low.bits:g} bits",
                where=str(low.path.parent),
                fix="Move one of them elsewhere",
            )
        if low.codebook != high.codebook:
            raise QuantMismatchError(
                f"{low.path.name} has codebook {low.codebook} and {high.path.name} {high.codebook}",
                where=str(low.path.parent),
                fix="Make all base quants with one codebook",
            )
