"""`exltune optimize`: the command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exltune.cli import options
from exltune.cli.console import RichReporter, output, print_json, with_options
from exltune.cli.flags import Only
from exltune.cli.registry import Section, command

if TYPE_CHECKING:
    from exltune.pipeline.optimization.optimize import Optimized
    from exltune.schema.heuristics import Heuristics


@command(Section.STEPS, 4)
def optimize(
    *,
    file: options.MeasurementFile,
    memory: options.MemoryFlags,
    head_bits: options.OneHead = None,
    floor: Annotated[
        list[str] | None,
        typer.Option("--floor", help="Rules (a name or a file) that no mix may fall below; repeatable."),
    ] = None,
    keep_fused: Annotated[
        bool,
        typer.Option(
            "--keep-fused", help="Equal bits for k and v, and for gate and up: exllamav3 fuses only such pairs."
        ),
    ] = False,
    search: options.SearchFlags,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the search.")] = 0,
    model: Annotated[Path | None, typer.Option("--model", help="The model, if it moved.", show_default=False)] = None,
    quants: Annotated[
        Path | None, typer.Option("--quants", help="The base quants, if they moved.", show_default=False)
    ] = None,
    data: Annotated[options.DataFlags, Only("data", "weights", "samples", "sample_tokens")],
    engine: options.EngineFlags,
    result: options.ResultFlags,
) -> None:
    """Search the best mix within a budget and judge it on fresh rows against every other method.

    The same command again takes the scores that are there. Without the base quants the best prediction wins. Texts
    are those that were measured; --data names them where they moved.
    """
    from exltune.pipeline.measurement.measured import session_of
    from exltune.pipeline.optimization.optimize import optimize as run
    from exltune.schema.measurement import Measurement
    from exltune.search.space.space import SpaceOptions
    from exltune.store.records import read_record

    asked = SpaceOptions(
        limits=memory.limits(),
        use=memory.use(),
        cache=memory.cache_or_auto(),
        head=options.parse_head(head_bits),
        floors=_floors(floor or []),
        keep_fused=keep_fused,
    )
    how, measurement = search.options(seed), read_record(file, Measurement)
    with session_of(
        measurement,
        model=model,
        quants=quants,
        data=data.moved(measurement.exltune.data),
        engine=engine.options(),
        store=engine.store_for(result.out),
        reporter=RichReporter(),
    ) as session:
        found = run(session, measurement, asked, result.out, settings=how, force=result.force, where=str(file))
    if result.json:
        print_json(_told(found, result.out))
    else:
        _show(found, result.out)


def _floors(names: list[str]) -> tuple[Heuristics, ...]:
    from exltune.search import load_all_rules, load_rules

    known = {rules.name: rules for rules in load_all_rules()}
    return tuple(known[name] if name in known else load_rules(name) for name in names)


def _told(found: Optimized, out: Path) -> dict[str, Any]:
    detail = found.recipe.exltune
    assert detail is not None, "optimize writes it"
    return {
        "recipe": str(out),
        "source": detail.source,
        "achieved_bpw": found.recipe.achieved_bpw,
        "size_bytes": detail.size_bytes,
        "head_bits": found.recipe.head_bits,
        "cache": detail.cache,
        "budget": detail.budget.model_dump(mode="json") if detail.budget else None,
        "search": found.detail.model_dump(mode="json"),
    }


def _show(found: Optimized, out: Path) -> None:
    from exltune.cli.tables import search_lines, standings_table

    output().print(standings_table(found.detail.standings))
    for line in search_lines(found.recipe, found.detail):
        typer.echo(with_options(line))
    typer.echo(out)
