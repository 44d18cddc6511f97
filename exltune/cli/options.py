"""Options that several commands share."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from exltune.errors import UsageError
from exltune.schema.defaults import DEFAULT_HEAD_BITS, DEFAULT_ROW_LENGTH, DEFAULT_ROWS

if TYPE_CHECKING:
    from exltune.engines import Resources
    from exltune.schema.tokens import DataOptions


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
    if not all(map(math.isfinite, numbers)):
        raise UsageError(f"{option} {text!r} holds nan or inf", fix=f"For example {option} {example}")
    if not numbers:
        raise UsageError(f"{option} names no numbers", fix=f"For example {option} {example}")
    return numbers


def parse_devices(text: str | None) -> tuple[int, ...]:
    """`0,1` -> (0, 1). Raises: UsageError."""
    numbers = parse_numbers("--devices", text, "0,1") if text is not None else ()
    if any(number < 0 or not number.is_integer() for number in numbers):
        raise UsageError(f"--devices {text!r} are no numbers of devices", fix="For example --devices 0,1")
    return tuple(int(number) for number in numbers)


def parse_quants(bits: str, head_bits: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Widths of the base quants, ascending, and bits of their heads, one for all or one each. Raises: UsageError.

    auto: heads from 3 to 8 bits, spread over the base quants.
    """
    widths = parse_numbers("--bits", bits, "2,3,4")
    if head_bits == "auto":
        ascending = tuple(sorted(set(widths)))
        return ascending, tuple(_auto_head(width) for width in ascending)
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


def _auto_head(width: float) -> float:
    """Mixes of few bits want heads of few: 3 at 2 bits, 4 at 2.5, 5 at 3, then exllamav3's 6, and 8 at 8."""
    return width if width > DEFAULT_HEAD_BITS else min(max(round(2 * width - 1), _LEAST_HEAD), DEFAULT_HEAD_BITS)


def parse_head(text: str | None) -> float | Literal["auto"] | None:
    """Bits of the head, or auto. Raises: UsageError."""
    if text is None or text == "auto":
        return None if text is None else "auto"
    return parse_numbers("--head-bits", text, "6")[0]


def parse_level(text: str) -> int:
    """`l3`, `3` -> 3. Raises: UsageError."""
    levels = {f"{prefix}{level}": level for prefix in ("l", "") for level in range(5)}
    if text not in levels:
        raise UsageError(
            f"there is no level {text!r}",
            fix="Choose l0 (layers), l1 (attention and MLP), l2 (their parts), l3 (their projections) or l4 (k and v, "
            "gate and up apart)",
        )
    return levels[text]


def parse_weights(text: str | None) -> dict[str, float]:
    """`math=2,code=0.5` -> {"math": 2.0, "code": 0.5}. Raises: UsageError naming the domain."""
    weights: dict[str, float] = {}
    for part in (text or "").split(","):
        domain, sign, number = (word.strip() for word in part.rpartition("="))
        if not part.strip():
            continue
        if not sign or not domain:
            raise UsageError(f"--weights {part!r} names no domain", fix=_WEIGHTS)
        if domain in weights:
            raise UsageError(f"--weights names the domain {domain!r} twice", fix=_WEIGHTS)
        try:
            weights[domain] = float(number)
        except ValueError:
            raise UsageError(f"the weight of {domain!r} is no number: {number!r}", fix=_WEIGHTS) from None
        if not 0 < weights[domain] < math.inf:
            raise UsageError(
                f"the weight of {domain!r} is {number}", fix="Give one above zero, or leave the domain's --data out"
            )
    return weights


def texts(
    data: list[str] | None,
    weights: str | None,
    samples: int | None,
    sample_tokens: int | None,
    rows: int,
    row_length: int,
    seed: int,
) -> DataOptions:
    """Settings of the token sets from the options of that name. Raises: UsageError."""
    from exltune.corpora.dealing import data_options_of

    return data_options_of(
        data or [],
        rows=rows,
        row_length=row_length,
        seed=seed,
        weights=parse_weights(weights),
        samples=samples,
        sample_tokens=sample_tokens,
    )


def resources(devices: str | None, max_ram: str | None, max_vram: str | None) -> Resources:
    """What an engine may take. Raises: UsageError naming the option."""
    from exltune.budget import parse_size
    from exltune.engines import Resources

    return Resources(
        parse_devices(devices),
        state_bytes=None if max_ram is None else parse_size(max_ram, _MAX_RAM),
        vram_bytes=None if max_vram is None else parse_size(max_vram, _MAX_VRAM),
    )


_LEAST_HEAD = 3.0
_MAX_RAM, _MAX_VRAM = "--max-ram", "--max-vram"
#: Defaults of --rows and --row-length.
ROWS, ROW_LENGTH = DEFAULT_ROWS, DEFAULT_ROW_LENGTH
_WEIGHTS = "For example --weights math=2,code=0.5"

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="Model directory: config.json and safetensors.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Where the result goes.", show_default=False)]
Quants = Annotated[
    Path, typer.Option("--quants", help="Directory with base quants, as quantize writes it.", show_default=False)
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="[DOMAIN=]PATH",
        help="Texts, chats (.jsonl, .parquet), packed tokens (.safetensors), or folders of them, instead of "
        "exllamav3's bundled texts, which the path `bundled` names. Repeatable.",
        show_default=False,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option("--weights", help="Shares of the domains, such as math=2,code=0.5; else 1.", show_default=False),
]
Samples = Annotated[
    int | None,
    typer.Option("--samples", min=1, help="Chats or texts taken of each domain; else all.", show_default=False),
]
SampleTokens = Annotated[
    int | None,
    typer.Option(
        "--sample-tokens", min=2, help="Tokens after which a chat or text is cut; else none.", show_default=False
    ),
]
Rows = Annotated[int, typer.Option("--rows", min=16, help="Rows over all four token sets together.")]
RowLength = Annotated[int, typer.Option("--row-length", min=2, help="Tokens in a row.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed by which texts are dealt to the token sets.")]
Bits = Annotated[str, typer.Option("--bits", help="Bit widths of the base quants: 1..8, and 1.5, 2.5, 3.5 with mul1.")]
HeadBits = Annotated[
    str,
    typer.Option(
        "--head-bits", help="Bits of the output head: one number, one for each of --bits, or auto for 3 to 8 bits."
    ),
]
CodebookOption = Annotated[CodebookName, typer.Option("--codebook", help="Codebook of all quants.")]
Level = Annotated[
    str,
    typer.Option(
        "--level",
        "-l",
        help="l0: layers; l1: attention, MLP; l2: their parts; l3: q, k+v, o, gate+up, down; l4: k, v, gate, up apart "
        "(not of routed experts), and each tensor's saliency. Also -l0 .. -l4.",
    ),
]
TargetBpw = Annotated[
    float | None,
    typer.Option(
        "--target-bpw",
        help="The most bpw, as exllamav3 counts: all linears but the head, scales included.",
        show_default=False,
    ),
]
EngineName = Annotated[str, typer.Option("--engine", help="auto, reference (CPU) or exllamav3 (CUDA).")]
Devices = Annotated[
    str | None, typer.Option("--devices", help="CUDA devices to use, such as 0,1,2; else all.", show_default=False)
]
MaxRam = Annotated[
    str | None,
    typer.Option(
        _MAX_RAM, help="Hidden states in RAM at one time, as 8GiB; of each worker.", show_default="2GiB; CUDA: 8GiB"
    ),
]
MaxVram = Annotated[
    str | None,
    typer.Option(_MAX_VRAM, help="What may be taken of each CUDA device, as 20GiB.", show_default="what is free"),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, nothing else there.")]
