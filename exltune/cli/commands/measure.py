"""`exltune measure`: the command."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from exltune.cli import options
from exltune.cli.console import print_json
from exltune.cli.registry import Section, command
from exltune.cli.session import open_session


@command(Section.STEPS, 3)
def measure(
    *,
    model: options.Model,
    quants: options.Quants,
    level: options.Level = "l3",
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="PASSES|HOURSh|all",
            help="Limit of the cost: passes over the model (60), hours (1.5h), or all: every swap on all rows.",
            show_default="a tenth of all",
        ),
    ] = None,
    data: options.DataFlags,
    engine: options.EngineFlags,
    result: options.ResultFlags,
) -> None:
    """Measure the effect of each group's bits on the model's output, KL(ref‖mix). Resumes after a kill."""
    from exltune.measurement import parse_budget
    from exltune.pipeline.measurement.measure import MeasureOptions
    from exltune.pipeline.measurement.measure import measure as run

    how = MeasureOptions(options.parse_level(level), parse_budget(budget))
    with open_session(model, data, engine, quants=quants, out=result.out) as session:
        found = run(session, result.out, how, force=result.force)
        counts = session.scores.counts
    if result.json:
        print_json(
            {
                "measurement": str(result.out),
                "groups": len(found.groups),
                "base_kld": found.base_kld,
                "probes": asdict(counts),
            }
        )
    else:
        typer.echo(result.out)
