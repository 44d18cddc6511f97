"""`exltune optimize`: the command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exltune.cli import memory, options
from exltune.cli.console import RichReporter, errors_in_one_line, output, print_json
from exltune.errors import UsageError

if TYPE_CHECKING:
    from exltune.pipeline.optimization.optimize import OptimizeOptions
    from exltune.schema.heuristics import Heuristics

Passes = Annotated[
    float, typer.Option("--passes", min=0, help="Model passes over the search set that the search may spend.")
]
Time = Annotated[
    str | None, typer.Option("--time", help="Stop searching after so long, such as 2h or 45m.", show_default=False)
]

KeepFused = Annotated[
    bool,
    typer.Option("--keep-fused", help="Equal bits for k and v, and for gate and up: exllamav3 fuses only such pairs."),
]


def optimize(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What measure wrote.")],
    out: options.Out,
    target_bpw: options.TargetBpw = None,
    size: memory.Size = None,
    vram: memory.Vram = None,
    gpus: memory.Gpus = None,
    context: memory.Context = None,
    cache: memory.CacheOrAuto = None,
    head_bits: Annotated[
        str | None, typer.Option("--head-bits", help="Bits of the head, or auto to search them.", show_default=False)
    ] = None,
    chunk: memory.Chunk = memory.CHUNK,
    slots: memory.Slots = memory.SLOTS,
    tensor_parallel: memory.TensorParallel = False,
    ram: memory.Ram = None,
    offload_layers: memory.OffloadLayers = 0,
    rules: Annotated[
        list[Path] | None, typer.Option("--rules", help="Your own rules (YAML) as one more method; repeatable.")
    ] = None,
    floor: Annotated[
        list[str] | None,
        typer.Option("--floor", help="Rules (a name or a file) that no mix may fall below; repeatable."),
    ] = None,
    keep_fused: KeepFused = False,
    front: Annotated[
        str | None,
        typer.Option("--front", help="Further targets in bpw, such as 2.6,3,4.", show_default=False),
    ] = None,
    passes: Passes = 48.0,
    time: Time = None,
    sampler: Annotated[
        str, typer.Option("--sampler", help="Optuna's sampler of the search's knobs: tpe, gp, cmaes, nsga2, random.")
    ] = "tpe",
    storage: Annotated[
        str | None,
        typer.Option("--storage", help="URL of an Optuna storage for the search.", show_default="a SQLite file"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the search.")] = 0,
    model: Annotated[Path | None, typer.Option("--model", help="The model, if it moved.", show_default=False)] = None,
    quants: Annotated[
        Path | None, typer.Option("--quants", help="The base quants, if they moved.", show_default=False)
    ] = None,
    engine: options.EngineName = "auto",
    devices: options.Devices = None,
    max_ram: options.MaxRam = None,
    max_vram: options.MaxVram = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Search the best mix within a budget and judge it on fresh rows against every other method.

    The same command again goes on with what its storage holds. Without the base quants the best prediction wins.
    """
    with errors_in_one_line(json):
        from exltune.cli.tables import search_lines, standings_table
        from exltune.pipeline.optimization.optimize import optimize as run
        from exltune.search.space.space import SpaceOptions

        asked = SpaceOptions(
            limits=memory.limits(gpus, vram, ram, target_bpw, size),
            use=memory.use(context, chunk, slots, tensor_parallel, offload_layers),
            cache=memory.cache_or_auto(cache),
            head=options.parse_head(head_bits),
            floors=_floors(floor or []),
            keep_fused=keep_fused,
        )
        found = run(
            file,
            asked,
            out,
            settings=search_options(passes, time, seed, sampler, storage, rules or [], front),
            model=model,
            quants_dir=quants,
            engine=engine,
            resources=options.resources(devices, max_ram, max_vram),
            force=force,
            reporter=RichReporter(),
        )
        if json:
            detail = found.recipe.exltune
            assert detail is not None, "optimize writes it"
            print_json(
                {
                    "recipe": str(out),
                    "source": detail.source,
                    "achieved_bpw": found.recipe.achieved_bpw,
                    "size_bytes": detail.size_bytes,
                    "head_bits": found.recipe.head_bits,
                    "cache": detail.cache,
                    "budget": detail.budget.model_dump(mode="json") if detail.budget else None,
                    "search": found.detail.model_dump(mode="json"),
                }
            )
            return
        output().print(standings_table(found.detail.standings))
        for line in search_lines(found.recipe, found.detail):
            typer.echo(line)
        typer.echo(out)


def search_options(
    passes: float,
    time: str | None,
    seed: int,
    sampler: str = "tpe",
    storage: str | None = None,
    rules: list[Path] | None = None,
    front: str | None = None,
) -> OptimizeOptions:
    """How to search, from options. Raises: UsageError naming the option."""
    from exltune.pipeline.optimization.optimize import OptimizeOptions
    from exltune.search import SearchOptions, load_rules

    return OptimizeOptions(
        search=SearchOptions(passes=passes, seed=seed),
        rules=tuple(load_rules(path) for path in rules or []),
        front=() if front is None else options.parse_numbers("--front", front, "2.6,3,4"),
        sampler=sampler,
        storage=storage,
        seconds=None if time is None else _seconds(time),
    )


def _seconds(text: str) -> float:
    from humanfriendly import InvalidTimespan, parse_timespan

    try:
        seconds = float(parse_timespan(text))
    except InvalidTimespan as error:
        raise UsageError(f"--time {text!r} is no time", fix="For example --time 2h or --time 45m") from error
    if text.strip().replace(".", "", 1).isdigit():
        raise UsageError(f"--time {text!r} has no unit", fix=f"Write {text}h, {text}m or {text}s")
    return seconds


def _floors(names: list[str]) -> tuple[Heuristics, ...]:
    from exltune.search import load_all_rules, load_rules

    known = {rules.name: rules for rules in load_all_rules()}
    return tuple(known[name] if name in known else load_rules(name) for name in names)
