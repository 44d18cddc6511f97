"""`exltune quantize`: the command."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from exltune.cli import options
from exltune.cli.console import print_json
from exltune.cli.flags import Only
from exltune.cli.registry import Section, command
from exltune.cli.session import open_session


@command(Section.STEPS, 2)
def quantize(
    *,
    model: options.Model,
    quants: options.QuantFlags,
    hq: Annotated[
        int, typer.Option("--hq", min=0, help="exllamav3's -hq: mixes with finer select layers, to compare with.")
    ] = 0,
    data: options.DataFlags,
    engine: Annotated[options.EngineFlags, Only("engine", "devices")],
    result: options.ResultFlags,
) -> None:
    """Make base quants: one EXL3 directory for each bit width, e.g. OUT/3bpw_H6. Resumes after a kill."""
    from exltune.pipeline.quants.quantize import quantize as run

    how = replace(quants.options(), hq=hq)
    with open_session(model, data, engine) as session:
        paths = run(session, result.out, how, force=result.force)
    if result.json:
        print_json({"quants": [str(path) for path in paths]})
        return
    for path in paths:
        typer.echo(path)
