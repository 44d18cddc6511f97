"""`exltune build`: from base quants, or quantized anew."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exltune.cli import options
from exltune.cli.console import RichReporter, errors_in_one_line, print_json
from exltune.errors import UsageError

if TYPE_CHECKING:
    from exltune.schema.mix import MixSize


def build(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="What optimize wrote, or any exllamav3 recipe.")],
    out: options.Out,
    quants: Annotated[
        Path | None, typer.Option("--quants", help="Directory with base quants to take from.", show_default=False)
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", help="The unquantized model: for linears at 16 bits, --requantize.", show_default=False
        ),
    ] = None,
    requantize: Annotated[
        bool, typer.Option("--requantize", help="Quantize --model anew with the recipe; a little better, much longer.")
    ] = False,
    codebook: options.CodebookOption = options.CodebookName.MUL1,
    data: options.Data = None,
    weights: options.Weights = None,
    samples: options.Samples = None,
    sample_tokens: options.SampleTokens = None,
    rows: options.Rows = options.ROWS,
    row_length: options.RowLength = options.ROW_LENGTH,
    seed: options.Seed = 0,
    engine: options.EngineName = "auto",
    devices: options.Devices = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Build the mixed EXL3 model of a recipe: from base quants, or with --requantize from the model itself.

    Texts, codebook, engine and devices are those of --requantize.
    """
    with errors_in_one_line(json):
        if requantize:
            from exltune.pipeline.quants.requantize import requantize as anew

            if model is None:
                raise UsageError("--requantize needs the unquantized model", fix="Give --model")
            texts = options.texts(data, weights, samples, sample_tokens, rows, row_length, seed)
            size = anew(
                recipe,
                model,
                out,
                texts,
                codebook=codebook.codebook,
                engine=engine,
                devices=options.parse_devices(devices),
                force=force,
                reporter=RichReporter(),
            )
        else:
            size = _spliced(recipe, quants, out, model, force)
        _show(size, out, json)


def _spliced(recipe: Path, quants: Path | None, out: Path, model: Path | None, force: bool) -> MixSize:
    from exltune.pipeline.quants.build import build as run

    if quants is None:
        raise UsageError("there are no base quants to take from", fix="Give --quants, or --model with --requantize")
    return run(recipe, quants, out, model=model, force=force, reporter=RichReporter())


def _show(size: MixSize, out: Path, json: bool) -> None:
    from exltune.budget import format_size

    if json:
        print_json({"model": str(out), **size.model_dump(mode="json")})
    else:
        typer.echo(f"{out}: {format_size(size.size_bytes)}, {size.bpw:.3f} bpw, head {size.head_bpw:.3f} bpw")
