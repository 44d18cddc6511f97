"""`exltune explain`: the command and its tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exltune.cli import options
from exltune.cli.console import output, print_json, with_options
from exltune.cli.registry import Section, command

if TYPE_CHECKING:
    from exltune.schema.explain import Explanation


@command(Section.LOOK, 2)
def explain(
    *,
    recipe: options.Recipe,
    model: options.RecipeModel = None,
    measurement: Annotated[
        Path | None,
        typer.Option("--measurement", help="Measurement file: shows the gain of each group.", show_default=False),
    ] = None,
    rules: Annotated[
        list[Path] | None,
        typer.Option("--rules", help="Hand rules of your own to compare with; repeatable.", show_default=False),
    ] = None,
    png: options.Png = None,
    result: options.OutputFlags,
) -> None:
    """Show where a recipe's bits went, their gain, and how it differs from the best hand rule."""
    from exltune.pipeline.optimization.explain import explain as run

    found = run(recipe, model=model, measurement_file=measurement, rules=rules or (), png=png, force=result.force)
    if result.json:
        print_json(found.model_dump(mode="json"))
    else:
        _show(found)
        if png is not None:
            typer.echo(png)


def _show(found: Explanation) -> None:
    from exltune.cli.explain_tables import explanation_tables, headline

    console = output()
    typer.echo(headline(found))
    for table in explanation_tables(found):
        console.print(table)
    for note in found.notes:
        typer.echo(with_options(f"{note}."))
