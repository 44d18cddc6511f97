"""A mix: which bit width every group of tensors takes."""

from __future__ import annotations

from exltune.schema.base import Record

#: Where a group's weights come from: a base quant named by its bits ("2", "2.5", "3"), REFERENCE, or any other
#: name under which a quant directory was given to the engine (the evaluation of finished quants does that).
Choice = str

#: The unquantized weights of the model itself.
REFERENCE: Choice = "16"


def choice_of_bits(bits: float) -> Choice:
    """Name of the base quant at a bit width: 3.0 -> "3", 2.5 -> "2.5"."""
    return f"{bits:g}"


class Mix(Record):
    """The choice of every l3 group and of the head; `name` is for people and need not be unique."""

    name: str
    choices: dict[str, Choice]


class MixSize(Record):
    """Size of a mix as exllamav3's Model.get_storage_info counts it.

    size_bytes: all tensors of linears and head. bpw: 8 * bytes of all linears but the head, fp16 routers included,
    over their weights. overhead_bytes: what of size_bytes is no weight payload (scales, markers, biases, routers).
    """

    size_bytes: int
    bpw: float
    head_bpw: float
    overhead_bytes: int
