"""`exltune inspect`: the command."""

from __future__ import annotations

import typer

from exltune.cli import options
from exltune.cli.console import output, print_json
from exltune.cli.registry import Section, command


@command(Section.STEPS, 1)
def inspect(model: options.Model, json: options.Json = False) -> None:
    """Show the parts of a model and its size at each bit width."""
    from exltune.cli.tables import inspection_tables
    from exltune.pipeline.quants.inspect import inspect as run

    report = run(model)
    if json:
        print_json(report.model_dump(mode="json"))
        return
    for table in inspection_tables(report):
        output().print(table)
    typer.echo(f"Engine: {report.engine}{f' ({report.engine_remark})' if report.engine_remark else ''}")
