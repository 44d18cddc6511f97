"""`exltune data`: the commands and their tables."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer

from exltune.cli import options
from exltune.cli.console import RichReporter, output, print_json
from exltune.cli.flags import Only
from exltune.cli.registry import Group, Section
from exltune.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from exltune.schema.tokens import DataReport, ExpertUse

group = Group("data", "Look at the token sets, or write one to a file.", Section.TEXTS, 1)

_SETS = ("calibration", "search", "selection", "held_out")
#: Rare experts that a line names.
_NAMED = 6


@group.command()
def inspect(
    *,
    model: options.Model,
    data: options.DataFlags,
    experts: Annotated[
        bool, typer.Option("--experts/--no-experts", help="Run the calibration set to see which experts it reaches.")
    ] = True,
    minimum: Annotated[int, typer.Option("--minimum", min=1, help="Tokens below which an expert counts as rare.")] = 64,
    engine: Annotated[options.EngineFlags, Only("engine")],
    json: options.Json = False,
) -> None:
    """Show tokens by set and domain, rows left out, overlap, and for MoE which experts see how many tokens."""
    from exltune.pipeline.texts.inspect import inspect_data

    texts = data.options()
    found = inspect_data(model, texts, experts=experts, minimum=minimum, engine=engine.engine, reporter=RichReporter())
    if json:
        print_json(found.model_dump(mode="json"))
    else:
        _show(found)


@group.command()
def export(
    *,
    model: options.Model,
    which: Annotated[str, typer.Option("--set", help=f"One of {', '.join(_SETS)}.")] = _SETS[0],
    data: options.DataFlags,
    result: options.ResultFlags,
) -> None:
    """Write a token set as packed tokens, which exllamav3's convert takes with --cal_data and exltune with --data."""
    from exltune.pipeline.texts.inspect import export_set
    from exltune.schema.tokens import Split

    if which not in _SETS:
        raise UsageError(f"there is no set {which!r}", fix=f"Choose one of: {', '.join(_SETS)}")
    texts = data.options()
    found = export_set(model, texts, Split(which), result.out, force=result.force)
    if result.json:
        print_json({"out": str(result.out), **found.model_dump(mode="json")})
    else:
        shape = f"-cr {found.rows} -cc {found.row_length}"
        typer.echo(f"{result.out}: {found.tokens:,} tokens; for exllamav3's convert: --cal_data {result.out} {shape}")


def _show(found: DataReport) -> None:
    output().print(_sets_table(found))
    for info in found.sets:
        if info.overlap:
            typer.echo(f"{info.split}: {info.overlap:.1%} of the 13-grams stand in another set")
    if found.experts is not None:
        output().print(_experts_table(found.experts))
        for line in _expert_lines(found.experts, found.data.rows):
            typer.echo(line)


def _sets_table(found: DataReport) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"Tokens by set and domain, rows of {found.data.row_length}")
    table.add_column("Domain", no_wrap=True)
    for name in ("Weight", "Samples", *_SETS, "Rows left out"):
        table.add_column(name, justify="right", no_wrap=True)
    for domain in found.domains:
        tokens = [f"{domain.tokens[info.split]:,}" for info in found.sets]
        table.add_row(
            escape(domain.domain), f"{domain.weight:g}", f"{domain.samples:,}", *tokens, f"{domain.rejected:,}"
        )
    table.add_section()
    total = [f"{info.tokens:,}" for info in found.sets]
    left_out = sum(info.rows_rejected for info in found.sets)
    table.add_row("all", "", f"{sum(d.samples for d in found.domains):,}", *total, f"{left_out:,}")
    return table


def _experts_table(use: ExpertUse) -> Table:
    from rich.table import Table

    table = Table(title="Calibration tokens that reach an expert")
    for name in ("Layer", "Experts", "Fewest", "Median", "Most", f"Under {use.minimum}"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("Rare")
    for layer in use.layers:
        counts = layer.tokens.values()
        numbers = (len(counts), min(counts), median(counts), max(counts), len(layer.rare))
        names = ", ".join(f"{_short(name)} ({layer.tokens[name]})" for name in layer.rare[:_NAMED])
        more = f" and {len(layer.rare) - _NAMED} more" if len(layer.rare) > _NAMED else ""
        table.add_row(str(layer.layer), *(f"{number:,g}" for number in numbers), names + more)
    return table


def _expert_lines(use: ExpertUse, rows: int) -> list[str]:
    rare = sum(len(layer.rare) for layer in use.layers)
    if not rare:
        return [f"Every expert sees {use.minimum} tokens or more."]
    lines = []
    if rare > use.unseen:
        lines.append(
            f"{rare - use.unseen} experts see fewer than {use.minimum} tokens: with about --rows {use.rows_needed} "
            f"(now {rows}) of the same texts none would."
        )
    if use.unseen:
        lines.append(f"{use.unseen} experts see no token at all: give text of other kinds.")
    return lines


def _short(expert: str) -> str:
    return expert.rpartition(".")[2]
