"""`exltune evaluate`: the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from exltune.cli import options
from exltune.cli.console import RichReporter, output, print_json
from exltune.cli.flags import Only
from exltune.cli.registry import Section, command


@command(Section.STEPS, 6)
def evaluate(
    *,
    model: options.Model,
    quants: Annotated[list[Path], typer.Argument(metavar="QUANT...", help="EXL3 directories of that model.")],
    data: options.DataFlags,
    engine: Annotated[options.EngineFlags, Only("engine")],
    result: options.CopyFlags,
) -> None:
    """Compare finished quants with the model on held-out text: KL both ways, perplexity, top-k agreement."""
    from exltune.cli.tables import evaluation_table
    from exltune.pipeline.evaluation.evaluate import evaluate as run

    found = run(
        model,
        quants,
        data.options(),
        out=result.out,
        engine=engine.engine,
        force=result.force,
        reporter=RichReporter(),
    )
    if result.json:
        print_json(found.model_dump(mode="json"))
    else:
        output().print(evaluation_table(found.rows, found.provenance.reference))
