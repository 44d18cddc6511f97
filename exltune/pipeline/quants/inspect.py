"""`exltune inspect`: the parts of a model and its size at every width."""

from __future__ import annotations

from pathlib import Path

from exltune.budget import SizeModel
from exltune.engines.base import auto_engine
from exltune.exl3.codebooks import INTEGER_BITS, Codebook
from exltune.inventory import load_inventory
from exltune.schema.base import Record
from exltune.schema.inventory import Group, Inventory


class Inspection(Record):
    """The model, its groups in forward order with the head last, and the plain quants' sizes by bit width.

    size_bytes and bpw: bit width -> all linears and head with the head at `head_bits`; bpw is exllamav3's, scales
    and router gates included, head left out. engine: the choice of `--engine auto` here; engine_remark: why no faster
    one.
    """

    path: str
    architecture: str
    layers: int
    parameters: int
    quantizable_parameters: int
    head_bits: float
    groups: tuple[Group, ...]
    size_bytes: dict[str, int]
    bpw: dict[str, float]
    engine: str
    engine_remark: str | None


def inspect(model: Path, *, head_bits: float = 6.0, codebook: Codebook = "mul1") -> Inspection:
    """Inspect a model directory or an EXL3 directory. Raises: ModelError."""
    inventory = load_inventory(model)
    sizes = {f"{bits:g}": SizeModel(inventory, codebook).uniform_size(bits, head_bits) for bits in INTEGER_BITS}
    engine, remark = auto_engine()
    return Inspection(
        path=str(model),
        architecture=inventory.architecture,
        layers=inventory.layers,
        parameters=inventory.parameters,
        quantizable_parameters=inventory.quantizable_parameters,
        head_bits=head_bits,
        groups=_groups(inventory),
        size_bytes={bits: size.size_bytes for bits, size in sizes.items()},
        bpw={bits: size.bpw for bits, size in sizes.items()},
        engine=engine,
        engine_remark=remark,
    )


def _groups(inventory: Inventory) -> tuple[Group, ...]:
    return (*inventory.groups, inventory.head)
