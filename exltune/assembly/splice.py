"""A mixed model whose linears are copied, bit for bit, from base quants."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from exltune.assembly.assemble import half_weight, write_model
from exltune.engines.base import Progress
from exltune.errors import QuantMismatchError, RecipeError
from exltune.exl3.directory import QuantDir
from exltune.exl3.tensors import TensorFiles
from exltune.exl3.writer import PendingTensor
from exltune.inventory import read_config, unquantized_tensor_names
from exltune.schema.inventory import Inventory
from exltune.schema.mix import UNQUANTIZED_BITS


def splice_model(
    out: Path,
    inventory: Inventory,
    bits: Mapping[str, float],
    sources: Mapping[float, QuantDir],
    head: QuantDir,
    settings: Mapping[str, Any],
    model: TensorFiles | None = None,
    progress: Progress | None = None,
) -> None:
    """Write the mix into the existing empty directory `out`.

    bits: of every linear of the groups. sources: base quant by bits. head: where the head comes from. model: the
    unquantized model, needed for linears at 16 bits. settings: config.json's, beside bits and head_bits.
    progress counts bytes.
    Raises: RecipeError for bits without a base quant, QuantMismatchError.
    """
    _check_widths(bits, sources, model)
    specs = {spec.key: spec for spec in inventory.linears}

    def linear(key: str) -> list[PendingTensor]:
        if key in inventory.head.tensors:
            return copied(head, key)
        if bits[key] != UNQUANTIZED_BITS:
            return copied(sources[bits[key]], key)
        assert model is not None
        return half_weight(model, key, f"{key}.weight", specs[key].bias)

    first = next(iter(sources.values()), head)
    plain = [copied_tensor(first, name) for name in unquantized_tensor_names(read_config(first.path))]
    write_model(first.path, out, inventory, linear, plain, settings, progress)


def copied(quant: QuantDir, key: str) -> list[PendingTensor]:
    """All stored tensors of a linear. Raises: QuantMismatchError where the quant lacks it."""
    names = quant.files.of_module(key)
    if not names:
        raise QuantMismatchError(f"the base quant lacks {key}", where=str(quant.path), fix="Quantize the model again")
    return [copied_tensor(quant, name) for name in names]


def copied_tensor(quant: QuantDir, name: str) -> PendingTensor:
    """One stored tensor, as it is."""
    return PendingTensor(name, quant.files.entry(name).nbytes, partial(quant.files.get, name))


def _check_widths(bits: Mapping[str, float], sources: Mapping[float, QuantDir], model: TensorFiles | None) -> None:
    known = set(sources) | ({UNQUANTIZED_BITS} if model is not None else set())
    unknown = sorted(set(bits.values()) - known)
    if unknown:
        have = ", ".join(f"{width:g}" for width in sorted(known))
        raise RecipeError(
            f"the recipe asks for {', '.join(f'{width:g}' for width in unknown)} bits, and base quants exist at {have}",
            fix="Quantize those widths too (`bits` of exltune quantize), or change the recipe; 16 needs `model`",
        )
