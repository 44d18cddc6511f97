"""`exltune tune`: the command."""

from __future__ import annotations

from typing import Annotated

from exltune.cli import options
from exltune.cli.console import RichReporter
from exltune.cli.flags import Only
from exltune.cli.registry import Section, command
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
    engine: Annotated[options.EngineFlags, Only("engine")],
) -> None:
    """Run the whole chain from a model to a tuned, proven quant. The same command again goes on after a kill.

    The search mixes the widths of --bits; with several --head-bits it chooses the head's too, in the same bytes.
    """
    from exltune.pipeline.tune import tune as run
    from exltune.search.space.space import Asked

    settings = quants.options()
    asked = Asked(
        limits=memory.limits(),
        use=memory.use(),
        cache=memory.cache_or_auto(),
        head="auto" if len(settings.head_bits) > 1 else None,
    )
    found = run(
        model,
        result.out,
        asked,
        settings,
        data.options(),
        level=options.parse_level(level),
        search=search.options(data.seed),
        engine=engine.engine,
        reporter=RichReporter(),
    )
    show_tune(found, result.out, result.json)
