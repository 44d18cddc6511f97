"""`exltune tasks`: the command."""

from __future__ import annotations

from typing import Annotated

import typer

from exltune.cli import options
from exltune.cli.console import RichReporter, output, print_json
from exltune.cli.registry import Section, command


@command(Section.JUDGE, 2)
def tasks(
    *,
    endpoint: Annotated[str, typer.Argument(metavar="URL", help="Endpoint, such as http://localhost:5000/v1.")],
    asked: options.NeededTaskFlags,
    result: options.ResultFlags,
) -> None:
    """Ask a served model benchmark tasks (lm-evaluation-harness); compare takes two such files."""
    from exltune.cli.compare_tables import runs_table
    from exltune.pipeline.evaluation.tasks import run_tasks

    found = run_tasks(endpoint, asked.options(), out=result.out, force=result.force, reporter=RichReporter())
    if result.json:
        print_json(found.model_dump(mode="json"))
    else:
        output().print(runs_table(found))
        typer.echo(result.out)
