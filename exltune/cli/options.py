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


def parse_numbers(option: str, text: str, example: str) -> tuple[float, ...]:
    """`2,3,2.5` -> (2.0, 3.0, 2.5). Raises: UsageError naming the option."""
    try:
        numbers = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise UsageError(f"{option} {text!r} is no list of numbers", fix=f"For example {option} {example}") from error
    if not numbers:
        raise UsageError(f"{option} names no numbers", fix=f"For example {option} {example}")
    return numbers


def parse_quants(bits: str, head_bits: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Widths of the base quants, ascending, and bits of their heads, one for all or one each. Raises: UsageError."""
    widths = parse_numbers("--bits", bits, "2,3,4")
    heads = parse_numbers("--head-bits", head_bits, "6")
    if len(heads) == 1:
        return tuple(sorted(set(widths))), heads
    if len(heads) != len(widths):
        raise UsageError(
            f"--head-bits names {len(heads)} heads and --bits {len(widths)} base quants",
            fix="Give one number for all, or one for each of --bits",
        )
    pairs = sorted(dict(zip(widths, heads, strict=True)).items())
    return tuple(width for width, _ in pairs), tuple(head for _, head in pairs)


def parse_head(text: str | None) -> float | Literal["auto"] | None:
    """Bits of the head, or auto. Raises: UsageError."""
    if text is None or text == "auto":
        return None if text is None else "auto"
    return parse_numbers("--head-bits", text, "6")[0]


def parse_level(text: str) -> int:
    """`l3`, `3` -> 3. Raises: UsageError."""
    levels = {f"{prefix}{level}": level for prefix in ("l", "") for level in range(4)}
    if text not in levels:
        raise UsageError(
            f"there is no level {text!r}",
            fix="Choose l0 (layers), l1 (attention and MLP), l2 (their parts) or l3 (groups that share bits)",
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
HeadBits = Annotated[
    str, typer.Option("--head-bits", help="Bits of the output head: one number, or one for each of --bits.")
]
CodebookOption = Annotated[CodebookName, typer.Option("--codebook", help="Codebook of all quants.")]
Level = Annotated[
    str,
    typer.Option(
        "--level",
        "-l",
        help="l0: layers; l1: attention, MLP; l2: their parts; l3: q, k+v, o, gate+up, down. Also -l0 .. -l3.",
    ),
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
