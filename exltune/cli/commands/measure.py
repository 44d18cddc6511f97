"""`exltune measure`: the command."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from exltune.cli import options
from exltune.cli.console import RichReporter, print_json
from exltune.cli.registry import Section, command


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
            help="What it may cost: passes over the model (60), hours (1.5h), or all: every swap on all rows.",
            show_default="a tenth of all",
        ),
    ] = None,
    data: options.DataFlags,
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            metavar="FILE|URL",
            help="Where finished probes are kept: an SQLite file, or postgresql://user@host/database.",
            show_default="probes.db beside --out",
        ),
    ] = None,
    engine: options.EngineFlags,
    result: options.ResultFlags,
) -> None:
    """Measure what each group's bits do to the model's output (KL divergence). Resumes after a kill."""
    from exltune.measure import parse_budget
    from exltune.pipeline.measurement.measure import measure as run
    from exltune.pipeline.measurement.probe_runs import ProbeCounts

    counts = ProbeCounts()
    found = run(
        model,
        quants,
        result.out,
        data.options(),
        level=options.parse_level(level),
        budget=parse_budget(budget),
        engine=engine.engine,
        store=store,
        resources=engine.resources(),
        ray=engine.ray_options(),
        force=result.force,
        reporter=RichReporter(),
        counts=counts,
    )
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
