"""A model directory as a reference: the unquantized model, or a quant where that is not at hand."""

from __future__ import annotations

from pathlib import Path

from exltune.budget import directory_size
from exltune.exl3.directory import QuantDir
from exltune.exl3.tensors import TensorFiles
from exltune.inventory import is_exl3, load_inventory
from exltune.schema.provenance import ReferenceQuant
from exltune.schema.quant import QuantRecord
from exltune.store.names import RECORD
from exltune.store.records import read_record


def reference_quant(model: Path) -> ReferenceQuant | None:
    """The quant that a model directory is, None for an unquantized model. Raises: as load_inventory."""
    if not is_exl3(TensorFiles(model)):
        return None
    quant, inventory = QuantDir(model), load_inventory(model)
    return ReferenceQuant(
        name=model.resolve().name,
        bpw=directory_size(inventory, quant).bpw,
        bits=min(quant.bits(key) for group in inventory.groups for key in group.tensors),
        head_bits=min(quant.bits(key) for key in inventory.head.tensors),
        weights_sha256=noted_weights(model),
    )


def noted_weights(quant: Path) -> str | None:
    """Hash of the unquantized model that exltune noted beside a quant of its own making."""
    if not (quant / RECORD).is_file():
        return None
    return read_record(quant / RECORD, QuantRecord).provenance.weights_sha256


def described(reference: ReferenceQuant | None, path: Path | str) -> str:
    """A reference in words."""
    if reference is None:
        return f"the unquantized model {path}"
    return f"the {reference.bpw:.2f} bpw quant {path}"
