"""The output of the tune and the demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from exltune.cli.console import output, print_json, with_options

if TYPE_CHECKING:
    from exltune.schema.evaluation import TuneResult


def show_tune(result: TuneResult, out: Path, json: bool) -> None:
    """The result of a tune, as tables or JSON."""
    from exltune.cli.tables import evaluation_table, standings_table, verdict_lines
    from exltune.pipeline.tune import evaluation_of

    if json:
        print_json(result.model_dump(mode="json"))
        return
    output().print(standings_table(result.verdict.standings))
    output().print(evaluation_table(evaluation_of(out).rows))
    for line in verdict_lines(result.verdict):
        typer.echo(with_options(line))
    typer.echo(f"Recipe: {result.recipe}\nModel:  {result.model}")
