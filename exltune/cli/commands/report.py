"""`exltune report`: the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from exltune.cli import options
from exltune.cli.console import print_json
from exltune.cli.registry import Section, command


@command(Section.LOOK, 1)
def report(
    *,
    file: options.MeasurementFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="The page: HTML that needs no network.")] = Path(
        "report.html"
    ),
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", help="A recipe that optimize found: shows its search's mixes.", show_default=False),
    ] = None,
    png: Annotated[
        Path | None, typer.Option("--png", metavar="DIR", help="Also draw PNGs into this folder.", show_default=False)
    ] = None,
    result: options.OutputFlags,
) -> None:
    """Write a page of a measurement: KL(ref‖mix) by layer and role, intervals, its law, and whether parts add up."""
    from exltune.report.measurement import report as run

    found = run(file, out, recipe=recipe, pictures=png, force=result.force)
    if result.json:
        print_json(found.model_dump(mode="json"))
    else:
        for path in (found.report, *found.pictures):
            typer.echo(path)
