"""`exltune build`: from base quants, or quantized anew."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exltune.cli import options
from exltune.cli.console import RichReporter, print_json
from exltune.cli.flags import Only
from exltune.cli.registry import Section, command
from exltune.cli.session import open_session
from exltune.errors import UsageError

if TYPE_CHECKING:
    from exltune.schema.mix import MixSize


@command(Section.STEPS, 5)
def build(
    *,
    recipe: options.Recipe,
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
    codebook: options.Codebook = options.CodebookName.MUL1,
    data: options.DataFlags,
    engine: Annotated[options.EngineFlags, Only("engine", "devices")],
    result: options.ResultFlags,
) -> None:
    """Build the mixed EXL3 model of a recipe: from base quants, or with --requantize from the model itself.

    Texts, codebook, engine and devices are those of --requantize.
    """
    if requantize:
        from exltune.pipeline.quants.requantize import requantize as anew
        from exltune.store.records import read_recipe

        if model is None:
            raise UsageError("--requantize needs the unquantized model", fix="Give --model")
        made = read_recipe(recipe)
        with open_session(model, data, engine) as session:
            size = anew(session, made, result.out, codebook=codebook.codebook, force=result.force)
    else:
        size = _spliced(recipe, quants, model, result)
    _show(size, result)


def _spliced(recipe: Path, quants: Path | None, model: Path | None, result: options.ResultFlags) -> MixSize:
    from exltune.pipeline.quants.build import build as run
    from exltune.store.quants.base_quants import find_base_quants
    from exltune.store.records import read_recipe

    if quants is None:
        raise UsageError("there are no base quants to take from", fix="Give --quants, or --model with --requantize")
    made, found = read_recipe(recipe), find_base_quants(quants, model)
    return run(made, found, result.out, model=model, force=result.force, reporter=RichReporter(), where=str(recipe))


def _show(size: MixSize, result: options.ResultFlags) -> None:
    from exltune.budget import format_size

    if result.json:
        print_json({"model": str(result.out), **size.model_dump(mode="json")})
    else:
        typer.echo(f"{result.out}: {format_size(size.size_bytes)}, {size.bpw:.3f} bpw, head {size.head_bpw:.3f} bpw")
