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
    engine: Annotated[options.EngineFlags, Only("engine", "devices", "max_ram", "max_vram")],
    result: options.ResultFlags,
) -> None:
    """Search the best mix within a budget and judge it on fresh rows against every other method.

    The same command again goes on with what its storage holds. Without the base quants the best prediction wins.
    """
    from exltune.pipeline.optimization.optimize import optimize as run
    from exltune.search.space.space import Asked

    asked = Asked(
        limits=memory.limits(),
        use=memory.use(),
        cache=memory.cache_or_auto(),
        head=options.parse_head(head_bits),
        floors=_floors(floor or []),
        keep_fused=keep_fused,
    )
    found = run(
        file,
        asked,
        result.out,
        settings=search.options(seed),
        model=model,
        quants_dir=quants,
        engine=engine.engine,
        resources=engine.resources(),
        force=result.force,
        reporter=RichReporter(),
    )
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
