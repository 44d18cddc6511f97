"""`exltune quantize`: the command."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from exltune.cli import options
from exltune.cli.console import RichReporter, print_json
from exltune.cli.flags import Only
from exltune.cli.registry import Section, command


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

    paths = run(
        model,
        result.out,
        replace(quants.options(), hq=hq),
        data.options(),
        engine=engine.engine,
        devices=engine.device_numbers(),
        force=result.force,
        reporter=RichReporter(),
    )
    if result.json:
        print_json({"quants": [str(path) for path in paths]})
        return
    for path in paths:
        typer.echo(path)
