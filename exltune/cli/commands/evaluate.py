"""`exltune evaluate`: the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from exltune.cli import options
from exltune.cli.console import output, print_json
from exltune.cli.registry import Section, command
from exltune.cli.session import open_session


@command(Section.STEPS, 6)
def evaluate(
    *,
    model: options.Model,
    quants: Annotated[list[Path], typer.Argument(metavar="QUANT...", help="EXL3 directories of that model.")],
    data: options.DataFlags,
    engine: options.EngineFlags,
    result: options.CopyFlags,
) -> None:
    """Compare finished quants with the model on held-out text: KL(ref‖quant), KL(quant‖ref), perplexity, top-k."""
    from exltune.cli.tables import evaluation_table
    from exltune.pipeline.evaluation.evaluate import evaluate as run

    with open_session(model, data, engine, out=result.out) as session:
        found = run(session, quants, result.out, force=result.force)
    if result.json:
        print_json(found.model_dump(mode="json"))
    else:
        output().print(evaluation_table(found.rows, found.provenance.reference))
