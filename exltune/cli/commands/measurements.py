"""`exltune measurements`: commands over the stores of finished probes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exltune.cli import options
from exltune.cli.console import output, print_json
from exltune.cli.registry import Group, Section

if TYPE_CHECKING:
    from rich.table import Table

    from exltune.schema.probe import ProbeContext, ShownProbe, StoredSet

group = Group("measurements", "See, merge and export measurements: finished probes.", Section.LOOK, 3)

Store = Annotated[
    str,
    typer.Argument(metavar="STORE", help="A probe store: its file, the directory that it lies in, or a database URL."),
]


@group.command("list")
def list_(store: Store, json: options.Json = False) -> None:
    """The content of a store: models, tokens, quants, counts, when."""
    from exltune.pipeline.measurement.measurements import listed

    found = listed(store)
    if json:
        print_json({"sets": [one.model_dump(mode="json") for one in found]})
    else:
        output().print(_sets_table(found))


@group.command()
def show(
    store: Store,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A mix (3.attn.o@2, uniform@3) or a group (3.attn.o).")],
    json: options.Json = False,
) -> None:
    """Scores of one mix or group with their intervals."""
    from exltune.pipeline.measurement.measurements import shown

    found = shown(store, name)
    if json:
        print_json({"probes": [probe.model_dump(mode="json") for probe in found]})
    else:
        output().print(_probes_table(found))


@group.command()
def merge(
    store: Store,
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help="Other stores, or files that export wrote.")
    ],
    json: options.Json = False,
) -> None:
    """Take other stores into one. Merging twice changes nothing; different numbers for the same probe are an error."""
    from exltune.pipeline.measurement.measurements import merged

    done = merged(store, sources)
    if json:
        print_json(done.model_dump(mode="json"))
    else:
        typer.echo(f"{done.store}: {done.added} probes added, {done.known} were there")


@group.command()
def export(
    store: Store,
    out: Annotated[Path, typer.Option("--out", "-o", help="NAME.jsonl or NAME.csv.", show_default=False)],
    result: options.OutputFlags,
) -> None:
    """Write all probes as JSON lines or CSV, exact to the last bit; merge reads both."""
    from exltune.pipeline.measurement.measurements import exported

    count = exported(store, out, force=result.force)
    if result.json:
        print_json({"file": str(out), "probes": count})
    else:
        typer.echo(f"{out}: {count} probes")


def _sets_table(sets: Sequence[StoredSet]) -> Table:
    from rich.table import Table

    table = Table("model", "engine", "code", "rows", "mixes", "choices", "group weights", "first", "last")
    for one in sets:
        context = one.context
        table.add_row(
            f"{context.architecture} {context.model_sha256[:8]}{_reference(context)}",
            context.engine,
            context.code[-64:][:8],
            f"{one.rows} x {one.row_length}",
            str(one.mixes),
            " ".join(one.choices),
            str(one.quants),
            one.first[:16],
            one.last[:16],
        )
    return table


def _reference(context: ProbeContext) -> str:
    """The reference, where it is not an unquantized model."""
    found = context.reference
    return "" if found is None else f"\nagainst {found.name}, {found.bpw:.2f} bpw"


def _probes_table(probes: Sequence[ShownProbe]) -> Table:
    from rich.table import Table

    table = Table("mix", "model", "rows", "KL(ref‖mix)", "95 % interval", "when", caption="nats/token")
    for probe in probes:
        interval = "" if probe.ci95 is None else f"{probe.ci95[0]:.6f} .. {probe.ci95[1]:.6f}"
        rows = f"{probe.rows} x {probe.row_length}"
        model = f"{probe.context.model_sha256[:8]}{_reference(probe.context)}"
        table.add_row(probe.name, model, rows, f"{probe.kld_nats:.6f}", interval, probe.created[:16])
    return table
