"""EXL3 directories in a folder, whoever made them, and whether one is a base quant of a model."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from exltune.engines.streaming.weights import Exl3Weights, open_reference
from exltune.errors import CorruptFileError, QuantMismatchError
from exltune.exl3.codebooks import Codebook
from exltune.exl3.directory import QuantDir
from exltune.exl3.tensors import TensorFiles
from exltune.inventory import check_embedding, load_inventory
from exltune.schema.inventory import Inventory, LinearSpec, Role
from exltune.schema.mix import UNQUANTIZED_BITS, Choice, choice_of_bits
from exltune.schema.provenance import Provenance
from exltune.schema.quant import QuantRecord
from exltune.store.names import RECIPE, RECORD
from exltune.store.records import read_record

#: ‖W - Q‖/‖W‖ of the codec at 2 bits; it halves with each bit more (DESIGN.md section 6).
_RFN_AT_2 = 0.292
#: A linear that is further off, in units of the codec's own error, is another weight. Error feedback costs some of it.
_SLACK = 2.0
_LEAST_RFN, _MOST_RFN = 0.02, 0.9


@dataclass(frozen=True)
class BaseQuant:
    """A quant whose groups all have one bit width; head_bits may differ."""

    choice: Choice
    bits: float
    head_bits: float
    codebook: Codebook
    path: Path

    @property
    def directory(self) -> QuantDir:
        """The opened directory."""
        return QuantDir(self.path)

    @property
    def provenance(self) -> Provenance | None:
        """Where it came from, if exltune made it."""
        if not (self.path / RECORD).is_file():
            return None
        return read_record(self.path / RECORD, QuantRecord).provenance


def quant_dirs(folder: Path) -> Iterator[Path]:
    """Model directories in a folder by name, but for those that exltune built from a recipe."""
    for path in sorted(folder.iterdir()):
        hidden = path.name.startswith(".")
        if path.is_dir() and not hidden and (path / "config.json").is_file() and not (path / RECIPE).exists():
            yield path


def read_base_quant(path: Path) -> BaseQuant | None:
    """The directory as a base quant; None for an unquantized model, and for a mix, which the log names.

    Raises: CorruptFileError for several codebooks, QuantMismatchError for a quantized embedding, and all that reading
    it raises.
    """
    files = TensorFiles(path)
    if not any(name.endswith(".trellis") for name in files.entries):
        return None
    check_embedding(files)
    quant, inventory = QuantDir(path), load_inventory(path)
    keys = [key for group in inventory.groups for key in group.tensors]
    widths = sorted({quant.bits(key) for key in keys})
    codebooks = {quant.codebook(key) for key in keys if key in quant}
    if len(widths) > 1:
        listed = ", ".join(f"{width:g}" for width in widths)
        logging.getLogger(__name__).warning("%s is passed over: a mix of %s bits is not a base quant", path, listed)
        return None
    if len(codebooks) > 1:
        raise CorruptFileError("its tensors have several codebooks", where=str(path), fix="Quantize it again")
    head = [quant.bits(key) if key in quant else UNQUANTIZED_BITS for key in inventory.head.tensors]
    return BaseQuant(choice_of_bits(widths[0]), widths[0], head[0], codebooks.pop(), path)


def check_weights_of(quant: BaseQuant, model: Path) -> None:
    """Compare a few linears of a quant that was made elsewhere with the model's: fine-tunes may share all else.

    A fine-tune that moved weights by less than the quant's own error is not told apart.
    Raises: QuantMismatchError, and all that reading either raises.
    """
    ours, theirs = open_reference(TensorFiles(model))[0], Exl3Weights(quant.path)
    allowed = min(_MOST_RFN, max(_LEAST_RFN, _SLACK * _RFN_AT_2 * 2.0 ** (2.0 - quant.bits)))
    for spec in _samples(load_inventory(quant.path)):
        weight = ours.linear(spec).weight
        rfn = float((theirs.linear(spec).weight - weight).norm() / weight.norm())
        if rfn > allowed:
            raise QuantMismatchError(
                f"it was made from other weights than {model}: {spec.key} is off by {rfn:.0%} of its norm, where "
                f"{quant.bits:g} bits cost {allowed / _SLACK:.1%}",
                where=str(quant.path),
                fix="Quantize this model again, or name the model that the quant was made from",
            )


def _samples(inventory: Inventory) -> list[LinearSpec]:
    """The smallest quantized linear of the first layer, of the one in the middle, and of the last."""
    layers = sorted({0, inventory.layers // 2, inventory.layers - 1})
    specs = [spec for spec in inventory.linears if not spec.role.fp16 and spec.role is not Role.HEAD]
    by_layer = ([spec for spec in specs if spec.layer == layer] for layer in layers)
    return [min(found, key=lambda spec: spec.in_features * spec.out_features) for found in by_layer]
