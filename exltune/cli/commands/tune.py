"""`exltune tune`: the command."""

from __future__ import annotations

from typing import Annotated

from exltune.cli import options
from exltune.cli.flags import Only
from exltune.cli.registry import Section, command
from exltune.cli.session import open_session
from exltune.cli.tune_result import show_tune


@command(Section.CHAIN, 1)
def tune(
    *,
    model: options.Model,
    result: Annotated[options.ResultFlags, Only("out", "json")],
    memory: options.MemoryFlags,
    quants: options.WideQuantFlags,
    level: options.Level = "l3",
    data: options.DataFlags,
    search: Annotated[options.SearchFlags, Only("passes", "time")],
    engine: Annotated[options.EngineFlags, Only("engine", "devices", "max_ram", "max_vram", "ray", "ray_cpus")],
) -> None:
    """Run the whole chain from a model to a tuned, proven quant. The same command again goes on after a kill.

    The search mixes the widths of --bits; with several --head-bits it chooses the head's too, in the same bytes.
    """
    from exltune.pipeline.tune import tune as run
    from exltune.search.space.space import SpaceOptions

    settings = quants.options()
    asked = SpaceOptions(
        limits=memory.limits(),
        use=memory.use(),
        cache=memory.cache_or_auto(),
        head="auto" if len(settings.head_bits) > 1 else None,
    )
    number, how = options.parse_level(level), search.options(data.seed)
    with open_session(model, data, engine) as session:
        found = run(session, result.out, asked, settings, level=number, search=how)
    show_tune(found, result.out, result.json)
