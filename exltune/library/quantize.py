"""Base quants of a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Unpack, cast, get_args

from exltune.errors import UsageError
from exltune.exl3.codebooks import Codebook
from exltune.library import arguments
from exltune.library.arguments import PathArgument
from exltune.library.sessions import SessionArguments, session_on
from exltune.pipeline.common.session import Session
from exltune.pipeline.quants.quantize import QuantizeOptions
from exltune.pipeline.quants.quantize import quantize as run
from exltune.schema.defaults import DEFAULT_HEAD_BITS, DEFAULT_WIDTHS, auto_head_bits

HeadBits = float | Sequence[float] | Literal["auto"]


def quantize(
    model: PathArgument | Session,
    out: PathArgument,
    *,
    bits: float | Sequence[float] = DEFAULT_WIDTHS,
    head_bits: HeadBits = DEFAULT_HEAD_BITS,
    codebook: Codebook = "mul1",
    force: bool = False,
    **more: Unpack[SessionArguments],
) -> tuple[Path, ...]:
    """Make base quants: one EXL3 directory for each bit width, e.g. `out/3bpw_H6`.

    Finished quants are kept; a call that was killed is taken up by the same call.

    Args:
        model: The unquantized model's directory, or a session on it.
        out: Folder of the base quants.
        bits: Bit widths: 1 to 8, and 1.5, 2.5, 3.5 with codebook mul1; 2, 3, 4, 5, 6 and 8 if not given.
        head_bits: Bits of the output head: one for all, one for each of `bits`, or "auto" for 3 to 8 bits.
        codebook: "mul1", "mcg" or "3inst".
        force: Whether directories that are there may be replaced.
        **more: Texts and engine, as `open_session` takes them.

    Returns:
        The directories, by ascending bits.

    Raises:
        UsageError: An argument is of a wrong type or value.
        ModelError: The model cannot be used.
        DataError: There are too few texts.
        OutputExistsError: A directory was made with other settings.

    Example:
        ```python
        exltune.quantize("MODEL", "quants/", bits=[2, 3, 4])
        ```
    """
    options = options_of(bits, head_bits, codebook)
    folder, force = arguments.path("out", out), arguments.flag("force", force)
    with session_on(model, more, "quantize", out=folder) as session:
        return tuple(run(session, folder, options, force=force))


def options_of(bits: object, head_bits: object, codebook: object) -> QuantizeOptions:
    """The base quants, ascending. Raises: UsageError."""
    book = cast(Codebook, arguments.one_of("codebook", codebook, get_args(Codebook)))
    widths = arguments.numbers("bits", bits, "bit widths, such as [2, 3, 4]")
    if head_bits == "auto":
        heads = tuple(map(auto_head_bits, widths))
    else:
        heads = arguments.numbers("head_bits", head_bits, 'bits of the head, one for each of `bits`, or "auto"')
    if len(heads) not in (1, len(widths)):
        raise UsageError(
            f"`head_bits` names {len(heads)} heads and `bits` {len(widths)} base quants",
            fix="Give one number for all, or one for each",
        )
    if len(heads) > 1:
        pairs = sorted(dict(zip(widths, heads, strict=True)).items())
        widths, heads = tuple(width for width, _ in pairs), tuple(head for _, head in pairs)
    return QuantizeOptions(tuple(sorted(set(widths))), heads, book)
