"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from exltune.errors import UsageError


class CodebookName(StrEnum):
    """The codebooks, as the command line names them."""

    MUL1 = "mul1"
    MCG = "mcg"
    THREE_INST = "3inst"

    @property
    def codebook(self) -> Literal["mul1", "mcg", "3inst"]:
        """The name as the codec knows it."""
        return self.value


def parse_bits(text: str) -> tuple[float, ...]:
    """`2,3,2.5` -> (2.0, 2.5, 3.0). Raises: UsageError."""
    try:
        widths = {float(part) for part in text.split(",") if part.strip()}
    except ValueError as error:
        raise UsageError(f"--bits {text!r} is no list of bit widths", fix="For example --bits 2,3,4") from error
    if not widths:
        raise UsageError("no bit widths are given", fix="For example --bits 2,3,4")
    return tuple(sorted(widths))


def parse_level(text: str) -> int:
    """`l3`, `3` -> 3. Raises: UsageError."""
    levels = {"l2": 2, "2": 2, "l3": 3, "3": 3}
    if text not in levels:
        raise UsageError(
            f"there is no level {text!r}", fix="Choose l2 (parts of a layer) or l3 (groups that share bits)"
        )
    return levels[text]


Model = Annotated[Path, typer.Argument(metavar="MODEL", help="Model directory: config.json and safetensors.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Where the result goes.", show_default=False)]
Quants = Annotated[
    Path, typer.Option("--quants", help="Directory with base quants, as quantize writes it.", show_default=False)
]
Data = Annotated[
    list[Path] | None,
    typer.Option(
        "--data", help="Text files (PATH...) instead of exllamav3's bundled texts; repeatable.", show_default=False
    ),
]
Rows = Annotated[int, typer.Option("--rows", min=16, help="Rows over all four token sets together.")]
RowLength = Annotated[int, typer.Option("--row-length", min=2, help="Tokens in a row.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed by which texts are dealt to the token sets.")]
Bits = Annotated[str, typer.Option("--bits", help="Bit widths of the base quants: 1..8, and 1.5, 2.5, 3.5 with mul1.")]
HeadBits = Annotated[float, typer.Option("--head-bits", help="Bits of the output head.")]
CodebookOption = Annotated[CodebookName, typer.Option("--codebook", help="Codebook of all quants.")]
Level = Annotated[
    str,
    typer.Option("--level", "-l", help="l2: parts of a layer; l3: q, k+v, o, gate+up, down. Also -l2, -l3."),
]
TargetBpw = Annotated[
    float,
    typer.Option(
        "--target-bpw", help="Size in exllamav3's bpw: all linears but the head, scales included.", show_default=False
    ),
]
EngineName = Annotated[str, typer.Option("--engine", help="auto or reference.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, nothing else there.")]
