"""`exltune demo`: the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from exltune.cli import options
from exltune.cli.console import RichReporter, errors_in_one_line
from exltune.cli.registry import Section, command
from exltune.cli.tune_result import show_tune


@command(Section.CHAIN, 2)
def demo(
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Empty, or a demo to go on with.")] = Path("demo"),
    json: options.Json = False,
) -> None:
    """Tune a small model that comes with exltune; fails unless the result beats the uniform quant."""
    from exltune.pipeline.demo import check_won
    from exltune.pipeline.demo import demo as run

    found = run(out, reporter=RichReporter())
    show_tune(found, out, json)
    # Standard output holds the result by now: a lost verdict is an exit code and a line beside it.
    with errors_in_one_line(as_json=False):
        check_won(found.verdict)
