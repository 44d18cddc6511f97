"""Options that say which base quants are to be made."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from exltune.cli.options.numbers import parse_quants
from exltune.schema.defaults import DEFAULT_WIDTHS, WIDE_WIDTHS

if TYPE_CHECKING:
    from exltune.pipeline.quants.quantize import QuantizeOptions

BITS = ",".join(f"{width:g}" for width in DEFAULT_WIDTHS)
#: Start of a tune: half rates, where the codebook has them, and heads of 3 to 8 bits.
WIDE_BITS, WIDE_HEAD_BITS = ",".join(f"{width:g}" for width in WIDE_WIDTHS), "auto"


class CodebookName(StrEnum):
    """The codebooks, as the command line names them."""

    MUL1 = "mul1"
    MCG = "mcg"
    THREE_INST = "3inst"

    @property
    def codebook(self) -> Literal["mul1", "mcg", "3inst"]:
        """The name as the codec knows it."""
        return self.value


Codebook = Annotated[CodebookName, typer.Option("--codebook", help="Codebook of all quants.")]
HeadBits = Annotated[
    str,
    typer.Option(
        "--head-bits", help="Bits of the output head: one number, one for each of --bits, or auto for 3 to 8 bits."
    ),
]


@dataclass(frozen=True, kw_only=True)
class QuantFlags:
    """Of a command that makes base quants."""

    bits: Annotated[
        str, typer.Option("--bits", help="Bit widths of the base quants: 1..8, and 1.5, 2.5, 3.5 with mul1.")
    ] = BITS
    head_bits: HeadBits = "6"
    codebook: Codebook = CodebookName.MUL1

    def options(self) -> QuantizeOptions:
        """The base quants. Raises: UsageError."""
        return quantize_options(self.bits, self.head_bits, self.codebook)


@dataclass(frozen=True, kw_only=True)
class WideQuantFlags:
    """The same of a command that chooses among them: more widths and heads unless it is told which."""

    bits: Annotated[
        str | None,
        typer.Option("--bits", help="Bit widths of the base quants.", show_default=f"{WIDE_BITS}; not mul1: {BITS}"),
    ] = None
    head_bits: HeadBits = WIDE_HEAD_BITS
    codebook: Codebook = CodebookName.MUL1

    def options(self) -> QuantizeOptions:
        """The base quants. Raises: UsageError."""
        bits = self.bits or (WIDE_BITS if self.codebook is CodebookName.MUL1 else BITS)
        return quantize_options(bits, self.head_bits, self.codebook)


def quantize_options(bits: str, head_bits: str, codebook: CodebookName) -> QuantizeOptions:
    """Base quants from options. Raises: UsageError."""
    from exltune.pipeline.quants.quantize import QuantizeOptions

    return QuantizeOptions(*parse_quants(bits, head_bits), codebook.codebook)
